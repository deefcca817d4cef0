//! The link to an MQTT broker, which brings requests in and replies out; its topics; a client; an embedded broker.
//!
//! The only crate that names the MQTT client library. It must never know ONNX Runtime or engine internals.
//!
//! [`Link`] is the daemon's end. [`Client`] is the other end, of `phi-edge ask --broker`, the demo and the tests. The JSON of the
//! messages is `phi_edge_wire`'s.

mod broker_url;
mod client;
#[cfg(feature = "embedded-broker")]
mod embedded;
mod link;
mod rule_topics;
mod tls;
mod topics;

pub use broker_url::{BrokerUrl, BrokerUrlError};
pub use client::{Client, ClientError, ClientOptions, Received};
#[cfg(feature = "embedded-broker")]
pub use embedded::{EmbeddedBroker, EmbeddedBrokerConfig, EmbeddedBrokerError};
pub use link::{
    CounterReader, Link, LinkConfig, LinkCounters, LinkInputs, LinkLiveness, LinkState, RequestLimits,
};
pub use rule_topics::RuleTopics;
pub use tls::{TlsError, TlsFiles};
pub use topics::{TopicError, TopicFault, Topics, filter_matches};
