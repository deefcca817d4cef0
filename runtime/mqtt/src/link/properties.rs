//! The MQTT properties of requests and replies that the contract uses.
//!
//! The inbox takes those of a request into its envelope (`inbox/requests.rs`) and its reply address.

use phi_edge_service::{Receipt, TraceParent};
use phi_edge_wire::Payload;
use rumqttc::{Publish, QoS};
use sha2::{Digest, Sha256};

/// The user property that names a trace (W3C Trace Context), of a request and of its replies.
pub(super) const TRACEPARENT: &str = "traceparent";

/// The user property that has the question about a payload that is an image.
const PROMPT: &str = "prompt";

/// Returns the payload of a request, its media type, and the question beside it.
pub(super) fn payload(publish: &Publish) -> Payload<'_> {
    let properties = publish.properties.as_ref();
    Payload {
        bytes: &publish.payload,
        content_type: properties.and_then(|properties| properties.content_type.as_deref()),
        question: user_property(publish, PROMPT),
    }
}

/// Returns the question about a payload that is an image; `None` where the payload has its question in itself.
pub(super) fn question(publish: &Publish) -> Option<&str> {
    let payload = payload(publish);
    payload.question.filter(|_| payload.is_image())
}

/// Returns the first user property of a name.
fn user_property<'a>(publish: &'a Publish, wanted: &str) -> Option<&'a str> {
    let properties = publish.properties.as_ref()?;
    let mut named = properties.user_properties.iter();
    named
        .find(|(name, _)| name.as_str() == wanted)
        .map(|(_, value)| value.as_str())
}

/// Returns the identifiers of the subscriptions that a message came by.
pub(super) fn subscriptions(publish: &Publish) -> &[usize] {
    let properties = publish.properties.as_ref();
    properties
        .map(|properties| properties.subscription_identifiers.as_slice())
        .unwrap_or_default()
}

/// Returns the trace that the sender says the request is part of.
pub(super) fn traceparent(publish: &Publish) -> Option<TraceParent> {
    TraceParent::parse(user_property(publish, TRACEPARENT)?)
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
    // What earlier versions of the program took has no such part.
    if let Some(question) = question(publish) {
        part(question.as_bytes());
    }
    Some(Receipt {
        packet_id: publish.pkid,
        digest: digest.finalize().into(),
    })
}

#[cfg(test)]
mod tests {
    use rumqttc::PublishProperties;

    use super::*;

    fn message(content_type: Option<&str>, prompt: Option<&str>) -> Publish {
        let properties = PublishProperties {
            content_type: content_type.map(str::to_owned),
            user_properties: prompt
                .map(|prompt| ("prompt".to_owned(), prompt.to_owned()))
                .into_iter()
                .collect(),
            ..PublishProperties::default()
        };
        Publish::new("t", QoS::AtLeastOnce, "x", Some(properties))
    }

    #[test]
    fn the_question_about_an_image_is_part_of_its_receipt() {
        let image = |prompt| receipt(&message(Some("image/png"), prompt));
        assert_ne!(image(Some("a")), image(Some("b")));
        assert_ne!(image(Some("a")), image(None));
        assert_eq!(image(Some("a")), image(Some("a")));
        // Receipts of other messages are those of earlier versions.
        let text = |prompt| receipt(&message(Some("text/plain"), prompt));
        assert_eq!(text(Some("a")), text(None));
        assert_eq!(question(&message(None, Some("a"))), None);
    }
}
