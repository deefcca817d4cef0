//! Outgoing messages.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use bytes::Bytes;
use phi_edge_service::{DeadLetter, Reply, ReplyBody, TraceParent};
use rumqttc::PublishProperties;
use tokio::time::Instant;

use super::properties::TRACEPARENT;
use super::quarantine::Publication;
use crate::topics::{Topics, brief, is_allowed_text};

/// A message to publish, and what is needed of it when the broker answers.
#[derive(Debug, Clone)]
pub(crate) struct Outgoing {
    pub(crate) topic: String,
    pub(crate) payload: Bytes,
    pub(crate) properties: PublishProperties,
    pub(crate) retain: bool,
    /// The message is published with QoS 0.
    pub(crate) at_most_once: bool,
    pub(crate) kind: OutgoingKind,
    /// The service's number of the message, which it keeps until the broker has acknowledged it.
    pub(crate) delivery: Option<u64>,
    /// The time after which the message is not published any more.
    pub(crate) expires: Option<Instant>,
}

/// The kind of an outgoing message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum OutgoingKind {
    Chunk,
    /// A final reply or an error.
    Outcome {
        id: String,
        reply_id: String,
        client: Option<String>,
        trace: Option<TraceParent>,
    },
    DeadLetter(DeadLetterContent),
    /// An event of a rule.
    Event {
        id: String,
    },
    Status,
    Stats,
}

/// The foreign content of a dead letter. One that can't be delivered is followed by one with less of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum DeadLetterContent {
    /// It quotes a topic or a payload, and names an id where there is one.
    Quoting(Option<String>),
    /// It quotes nothing and names an id.
    Naming,
    /// It holds only texts of the node itself.
    Plain,
}

impl DeadLetterContent {
    fn of(letter: &DeadLetter) -> Self {
        if !letter.topic.is_empty() || !letter.payload.is_empty() {
            Self::Quoting(letter.id.clone())
        } else if letter.id.is_some() {
            Self::Naming
        } else {
            Self::Plain
        }
    }
}

impl OutgoingKind {
    /// The kind's name in the log and in dead letters.
    pub(crate) fn label(&self) -> &'static str {
        match self {
            Self::Chunk => "chunk",
            Self::Outcome { .. } => "reply",
            Self::DeadLetter(_) => "dead letter",
            Self::Event { .. } => "event",
            Self::Status => "status",
            Self::Stats => "stats",
        }
    }

    /// The id of the request or of the event.
    pub(crate) fn id(&self) -> Option<&str> {
        match self {
            Self::Outcome { id, .. } | Self::Event { id } => Some(id),
            _ => None,
        }
    }
}

impl Outgoing {
    /// Creates the message of a reply of the service.
    pub(crate) fn reply(reply: &Reply, topics: &Topics, node: &str) -> Self {
        let outcome = |reply_id: &str| OutgoingKind::Outcome {
            id: reply.key.id.clone(),
            reply_id: reply_id.to_owned(),
            client: reply.key.client.clone(),
            trace: reply.address.traceparent.clone(),
        };
        let mut properties = json();
        let mut topic = reply.address.topic().unwrap_or_default().to_owned();
        let mut retain = false;
        let mut at_most_once = false;
        let mut expires = None;
        if let ReplyBody::Event(published) = &reply.body {
            let output = &published.output;
            retain = output.retain;
            at_most_once = output.qos == 0;
            expires = output.expiry.map(|expiry| Instant::now() + expiry);
        }
        if let ReplyBody::DeadLetter(_) = &reply.body {
            topic = topics.dead_letter();
        } else {
            properties.correlation_data = reply.address.correlation.clone().map(Bytes::from);
            properties.user_properties = vec![("kind".into(), phi_edge_wire::reply_kind(&reply.body).into())];
            if let Some(trace) = &reply.address.traceparent {
                let trace = (TRACEPARENT.into(), trace.as_str().into());
                properties.user_properties.push(trace);
            }
            // A later version of the trace's standard may append anything to it.
            let allowed = |(name, value): &(String, String)| is_allowed_text(name) && is_allowed_text(value);
            properties.user_properties.retain(allowed);
        }
        Self {
            topic,
            payload: phi_edge_wire::encode_reply(reply, node).into(),
            properties,
            retain,
            at_most_once,
            kind: match &reply.body {
                ReplyBody::Chunk { .. } => OutgoingKind::Chunk,
                ReplyBody::Final(answer) => outcome(&answer.reply_id),
                ReplyBody::Error(refusal) => outcome(&refusal.reply_id),
                ReplyBody::DeadLetter(letter) => OutgoingKind::DeadLetter(DeadLetterContent::of(letter)),
                ReplyBody::Event(published) => OutgoingKind::Event {
                    id: published.event.event_id.clone(),
                },
            },
            delivery: reply.delivery,
            expires,
        }
    }

    /// Returns the properties to publish with now, with what is left of the expiry; `None` once the message has expired.
    pub(crate) fn properties_now(&self) -> Option<PublishProperties> {
        let mut properties = self.properties.clone();
        if let Some(expires) = self.expires {
            let left = expires
                .checked_duration_since(Instant::now())
                .filter(|left| !left.is_zero())?;
            // Whole seconds, rounded up.
            let seconds = left.as_secs() + u64::from(left.subsec_nanos() > 0);
            properties.message_expiry_interval = Some(u32::try_from(seconds).unwrap_or(u32::MAX));
        }
        Some(properties)
    }

    /// Creates a retained JSON message of the node itself.
    pub(crate) fn retained(topic: String, payload: Vec<u8>, kind: OutgoingKind) -> Self {
        Self {
            topic,
            payload: payload.into(),
            properties: json(),
            retain: true,
            at_most_once: false,
            kind,
            delivery: None,
            expires: None,
        }
    }

    /// Describes the message without any text of its topic or payload, so that the description can be published.
    pub(crate) fn facts(&self) -> String {
        let client = match &self.kind {
            OutgoingKind::Outcome {
                client: Some(client), ..
            } => format!(" to client \"{}\"", brief(client)),
            _ => String::new(),
        };
        format!(
            "the {}{client} of {} bytes can't be delivered on its topic of {} levels and {} bytes",
            self.kind.label(),
            self.payload.len(),
            self.topic.split('/').count(),
            self.topic.len(),
        )
    }

    /// Returns an upper bound of the packet's size in bytes.
    pub(crate) fn packet_size(&self) -> usize {
        // The bytes of the fixed header, topic length, packet id, property length and the small properties.
        const HEADER_BYTES: usize = 64;
        let correlation = self.properties.correlation_data.as_ref().map_or(0, Bytes::len);
        let user: usize = self
            .properties
            .user_properties
            .iter()
            .map(|(k, v)| k.len() + v.len() + 5)
            .sum();
        HEADER_BYTES + self.topic.len() + correlation + user + self.payload.len()
    }
}

impl Publication for Outgoing {
    fn destination(&self) -> u64 {
        destination(&self.topic)
    }

    fn bytes(&self) -> usize {
        self.packet_size()
    }

    fn is_qos0(&self) -> bool {
        self.at_most_once
    }

    fn is_latest_only(&self) -> bool {
        self.kind == OutgoingKind::Stats
    }

    fn is_same(&self, other: &Self) -> bool {
        self.topic == other.topic && self.payload == other.payload && self.properties == other.properties
    }
}

/// Returns the hash of a topic, which names it within this process.
pub(crate) fn destination(topic: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    topic.hash(&mut hasher);
    hasher.finish()
}

fn json() -> PublishProperties {
    PublishProperties {
        payload_format_indicator: Some(1),
        content_type: Some("application/json".into()),
        ..PublishProperties::default()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_broker_is_told_what_is_left_of_an_expiry() {
        let mut event = Outgoing::retained("t".into(), Vec::new(), OutgoingKind::Stats);
        assert_eq!(
            event.properties_now().map(|it| it.message_expiry_interval),
            Some(None)
        );
        event.expires = Some(Instant::now() + Duration::from_mins(1));
        for (passed, left) in [
            (0, Some(60)),
            (20, Some(40)),
            (39, Some(1)),
            (1, None),
            (100, None),
        ] {
            tokio::time::advance(Duration::from_secs(passed)).await;
            let told = event.properties_now().map(|it| it.message_expiry_interval);
            assert_eq!(told, left.map(Some));
        }
    }
}
