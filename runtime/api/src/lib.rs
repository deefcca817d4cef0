//! Requests and replies: what the doors (MQTT) and the service hand to each other.
//!
//! Values only, validated. It must never know a wire format, a transport, or how a job is run and stored.

mod job;
mod reply;

pub use job::{JobKey, NewJob, Priority, ReplyAddress, ReplyTarget, RequestImage};
pub use phi_edge_engine::Sampling;
pub use phi_edge_job::{ErrorCode, FinishReason, Receipt, TraceParent};
pub use phi_edge_models::{Detail, Message, PlacedImage, Role, Truncation};
pub use reply::{Answer, DeadLetter, PromptProgress, Refusal, Reply, ReplyBody};
