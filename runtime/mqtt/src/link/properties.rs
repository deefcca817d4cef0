//! The MQTT properties of requests and replies that the contract uses.
//!
//! The inbox takes those of a request into its envelope (`inbox/requests.rs`) and its reply address.

use phi_edge_service::{Receipt, TraceParent};
use rumqttc::{Publish, QoS};
use sha2::{Digest, Sha256};

/// The user property that names a trace (W3C Trace Context), of a request and of its replies.
pub(super) const TRACEPARENT: &str = "traceparent";

/// Returns the identifiers of the subscriptions that a message came by.
pub(super) fn subscriptions(publish: &Publish) -> &[usize] {
    let properties = publish.properties.as_ref();
    properties
        .map(|properties| properties.subscription_identifiers.as_slice())
        .unwrap_or_default()
}

/// Returns the trace that the sender says the request is part of.
pub(super) fn traceparent(publish: &Publish) -> Option<TraceParent> {
    let properties = publish.properties.as_ref()?;
    let (_, value) = properties
        .user_properties
        .iter()
        .find(|(name, _)| name.as_str() == TRACEPARENT)?;
    TraceParent::parse(value)
}

/// Returns the receipt of a message, the same if the broker delivers it again; `None` for QoS 0, which is never delivered
/// again.
pub(super) fn receipt(publish: &Publish) -> Option<Receipt> {
    if publish.qos == QoS::AtMostOnce {
        return None;
    }
    let properties = publish.properties.as_ref();
    let mut digest = Sha256::new();
    let mut part = |bytes: &[u8]| {
        digest.update(bytes.len().to_le_bytes());
        digest.update(bytes);
    };
    part(&publish.pkid.to_le_bytes());
    part(&publish.topic);
    part(&publish.payload);
    part(
        properties
            .and_then(|p| p.correlation_data.as_deref())
            .unwrap_or_default(),
    );
    part(
        properties
            .and_then(|p| p.response_topic.as_deref())
            .unwrap_or_default()
            .as_bytes(),
    );
    Some(Receipt {
        packet_id: publish.pkid,
        digest: digest.finalize().into(),
    })
}
