//! The terms that jobs, rules, the store and the wire formats share: error codes, finish reasons, receipts and traces.
//!
//! Values only. It must never know how a job is run, stored, encoded or sent.

mod code;
mod finish;
mod receipt;
mod trace;

pub use code::ErrorCode;
pub use finish::FinishReason;
pub use receipt::Receipt;
pub use trace::TraceParent;
