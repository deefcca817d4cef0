//! The MQTT properties of requests and replies that the contract uses.

use phi_edge_service::TraceParent;
use rumqttc::Publish;

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
