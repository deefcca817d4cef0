//! Jobs: admission, queue, duplicates, deadlines, the engine's thread and what clients are told.
//!
//! It must never know MQTT client types, topics' meaning, wire formats, or ONNX Runtime.
//!
//! A job enters by [`Service::submit`], waits in the ledger, runs on the engine's thread and leaves as
//! [`Reply`]s on the channel given to [`Service::start`]: chunks that may be lost, and exactly one outcome. With a
//! [`Store`] it does so across restarts: what was accepted goes on, and outcomes are kept until
//! [`Service::delivered`].

mod chunks;
mod dispatcher;
mod door;
mod engine_handle;
mod engine_thread;
mod generation;
mod job;
mod journal;
mod ledger;
mod pace;
mod prompts;
mod pulse;
mod quota;
mod receipts;
mod reply;
pub mod rules;
mod runner;
mod seen;
mod service;
mod sessions;
mod stats;
mod store;
mod throttle;
mod trace;
mod witness;

pub use engine_handle::{EngineHandle, EngineInfo, EngineLoad, EngineLost};
pub use phi_edge_engine::{Detokenizer, KvUse, Sampling, TokenId};
pub use phi_edge_models::{EncodeCost, Message, Role};

pub use engine_thread::{StartError, spawn_engine};
pub use generation::{EngineCommand, Generation, Sink, Update};
pub use job::{JobKey, NewJob, Priority, ReplyAddress, ReplyTarget};
pub use prompts::{PromptError, Prompts};
pub use pulse::{Beat, EnginePulse};
pub use quota::Quota;
pub use receipts::Receipt;
pub use reply::{Answer, DeadLetter, ErrorCode, FinishReason, Refusal, Reply, ReplyBody};
pub use service::{Observed, Service, ServiceConfig};
pub use stats::Stats;
pub use store::{
    Inventory, LastEnd, LockError, Purge, Store, StoreConfig, StoreError, StoreHealth, StoreLock, ToolError,
    inspect, private_folder, purge,
};
pub use throttle::Throttle;
pub use trace::TraceParent;
pub use witness::{JobEnd, Outcome, Witness, Witnesses};
