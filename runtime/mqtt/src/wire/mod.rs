//! The messages of the contract, version 1: JSON objects of UTF-8.

mod cancel;
mod dead_letter;
mod event;
mod reply;
mod request;
mod status;

pub use cancel::parse_cancel;
pub use dead_letter::dead_letter;
pub use event::event;
pub use reply::{encode_reply, kind, too_large_reply};
pub use request::{Parsed, Payload, Rejected, parse_request, valid_id};
pub use status::{State, Status};
