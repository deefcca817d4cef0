//! The addresses of replies as the file holds them.

use phi_edge_api::{ReplyAddress, ReplyTarget};
use phi_edge_job::TraceParent;
use serde::{Deserialize, Serialize};

/// An address of replies.
#[derive(Serialize, Deserialize)]
pub(crate) struct AddressRow {
    /// Empty where the reply goes to no topic.
    topic: String,
    /// The reply is held for pick-up.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    held: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    correlation: Option<Vec<u8>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    traceparent: Option<String>,
}

impl From<&ReplyAddress> for AddressRow {
    fn from(address: &ReplyAddress) -> Self {
        Self {
            topic: address.topic().unwrap_or_default().to_owned(),
            held: address.target == ReplyTarget::Held,
            correlation: address.correlation.clone(),
            traceparent: address
                .traceparent
                .as_ref()
                .map(|trace| trace.as_str().to_owned()),
        }
    }
}

impl From<AddressRow> for ReplyAddress {
    fn from(row: AddressRow) -> Self {
        let target = match (row.held, row.topic.is_empty()) {
            (true, _) => ReplyTarget::Held,
            (false, true) => ReplyTarget::Nowhere,
            (false, false) => ReplyTarget::Topic(row.topic),
        };
        Self {
            target,
            correlation: row.correlation,
            traceparent: row.traceparent.as_deref().and_then(TraceParent::parse),
        }
    }
}
