//! Jobs: admission, queue, duplicates, deadlines, the engine's thread and the replies to clients.
//!
//! It must never know MQTT client types, topics' meaning, wire formats, or ONNX Runtime.
//!
//! A job enters by [`Service::submit`], waits in the ledger, runs on the engine's thread and leaves as
//! [`Reply`]s on the channel given to [`Service::start`]: chunks that may be lost, and exactly one outcome. With a
//! [`Store`] it does so across restarts: what was accepted goes on, and outcomes are kept until
//! [`Service::delivered`].

mod engine_thread;
mod jobs;
mod observers;
mod service;
mod stats;

pub use engine_thread::{
    EngineCommand, EngineHandle, EngineInfo, EngineLoad, EngineLost, Generation, Heartbeat, LivenessProbe,
    Sink, StartError, Throttle, Update, spawn_engine,
};
pub use jobs::Quota;
pub use observers::{JobEnd, Observer, Observers, Outcome};
pub use phi_edge_api::{
    Answer, DeadLetter, Detail, JobKey, NewJob, Priority, PromptProgress, Refusal, Reply, ReplyAddress,
    ReplyBody, ReplyTarget, RequestImage, Truncation,
};
pub use phi_edge_engine::{Detokenizer, KvUse, Sampling, Symbol, TokenId};
pub use phi_edge_job::{ErrorCode, FinishReason, Receipt, TraceParent};
pub use phi_edge_models::{EncodeCost, Message, Role};
pub use phi_edge_prompts::{PromptError, Prompts};
pub use phi_edge_store::{
    Inventory, LastEnd, LockError, Purge, Store, StoreConfig, StoreError, StoreHealth, StoreLock, ToolError,
    inspect, private_folder, purge,
};
pub use service::{Ingested, Service, ServiceConfig};
pub use stats::Stats;
