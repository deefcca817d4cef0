//! The messages of the contract, version 1: JSON objects of UTF-8.

mod cancel;
mod dead_letter;
mod event;
mod plain;
mod reply;
mod request;
mod status;
mod strict;

/// The user property that names a trace (W3C Trace Context), of a request and of its replies.
pub(crate) const TRACEPARENT: &str = "traceparent";

pub use cancel::parse_cancel;
pub use dead_letter::dead_letter;
pub use event::event;
pub(crate) use plain::to_bytes;
pub use reply::{encode_reply, kind, too_large_reply};
pub use request::{Parsed, Payload, Rejected, parse_request, valid_id};
pub use status::{State, Status};
