//! The messages of the contract, version 1: JSON objects of UTF-8.
//!
//! Requests are read and replies are written here, for every transport alike. It must never know MQTT, HTTP, topics or an
//! async runtime: a transport passes bytes and plain values.

mod cancel;
mod dead_letter;
mod event;
mod id;
mod plain;
mod quote;
mod reply;
mod request;
mod status;
mod strict;

pub use cancel::parse_cancel;
pub use dead_letter::dead_letter;
pub use event::event;
pub use id::valid_id;
pub use plain::{is_interchange_char, to_bytes};
pub use reply::{encode_reply, kind, too_large_reply};
pub use request::{Parsed, Payload, Rejected, parse_request};
pub use status::{State, Status};
