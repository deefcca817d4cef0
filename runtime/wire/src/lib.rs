//! The JSON of requests, cancellations, replies, events, dead letters and the status: the contract, version 1.
//!
//! Requests are read and replies are written here, for every transport alike. It must never know MQTT, HTTP, topics or an
//! async runtime: a transport passes bytes and plain values.

mod cancel;
mod dead_letter;
mod event;
mod id;
mod json;
mod outcome;
mod quote;
mod reply;
mod request;
mod status;
mod strict;

pub use cancel::parse_cancel;
pub use dead_letter::{encode_dead_letter, original_without_images};
pub use event::encode_event;
pub use id::check_id;
pub use json::{is_interchange_char, to_json};
pub use reply::{encode_reply, encode_too_large, reply_kind};
pub use request::{Envelope, ParseLimits, Payload, Request, RequestError, parse_request};
pub use status::{State, Status};
