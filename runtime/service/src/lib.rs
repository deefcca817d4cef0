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
mod journal;
mod ledger;
mod pace;
mod prompts;
mod pulse;
mod quota;
mod receipts;
mod runner;
mod seen;
mod service;
mod sessions;
mod stats;
mod throttle;
mod witness;
mod worded;

pub use engine_handle::{EngineHandle, EngineInfo, EngineLoad, EngineLost};
pub use phi_edge_engine::{Detokenizer, KvUse, Sampling, TokenId};
pub use phi_edge_job::{ErrorCode, FinishReason, Receipt, TraceParent};
pub use phi_edge_models::{EncodeCost, Message, Role};

pub use engine_thread::{StartError, spawn_engine};
pub use generation::{EngineCommand, Generation, Sink, Update};
pub use phi_edge_api::{Answer, DeadLetter, Refusal, Reply, ReplyBody};
pub use phi_edge_api::{JobKey, NewJob, Priority, ReplyAddress};
pub use phi_edge_store::{
    Inventory, LastEnd, LockError, Purge, Store, StoreConfig, StoreError, StoreHealth, StoreLock, ToolError,
    inspect, private_folder, purge,
};
pub use prompts::{PromptError, Prompts};
pub use pulse::{Beat, EnginePulse};
pub use quota::Quota;
pub use service::{Observed, Service, ServiceConfig};
pub use stats::Stats;
pub use throttle::Throttle;
pub use witness::{JobEnd, Outcome, Witness, Witnesses};
