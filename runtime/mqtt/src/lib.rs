//! The MQTT side: topics, and the link that carries requests in and replies out.
//!
//! The only crate that names the MQTT client library. It must never know ONNX Runtime or the engine's inside.
//!
//! [`Link`] is the daemon's end. [`Client`] is the other one: what `phi-edge ask --broker`, the demo and the
//! tests talk to a daemon with. The messages themselves are of `phi_edge_wire`.

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
