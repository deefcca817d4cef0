//! Validated requests of clients.

use std::sync::Arc;
use std::time::Duration;

use phi_edge_engine::Sampling;
use phi_edge_models::{Detail, Message, Truncation};

use phi_edge_job::Receipt;
use phi_edge_job::TraceParent;

/// The key of a job, whose id is unique per client.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct JobKey {
    /// The `{client}` of the request's topic; `None` on the shared topic.
    pub client: Option<String>,
    /// The request's id: 1 to 64 of `A-Z a-z 0-9 . _ -`.
    pub id: String,
}

/// The address of a reply, and the data that is returned to it. Two that differ only in their trace are equal.
#[derive(Debug, Clone)]
pub struct ReplyAddress {
    /// The target of the reply.
    pub target: ReplyTarget,
    /// The correlation data of the request, returned as they came.
    pub correlation: Option<Vec<u8>>,
    /// The trace that the request is part of, returned as it came.
    pub traceparent: Option<TraceParent>,
}

impl PartialEq for ReplyAddress {
    fn eq(&self, other: &Self) -> bool {
        (&self.target, &self.correlation) == (&other.target, &other.correlation)
    }
}

impl Eq for ReplyAddress {}

impl ReplyAddress {
    /// Returns the address of replies that are not sent, and of those that are sent by their kind.
    pub fn nowhere() -> Self {
        Self::from(ReplyTarget::Nowhere)
    }

    /// Returns the topic, if the reply goes to one.
    pub fn topic(&self) -> Option<&str> {
        match &self.target {
            ReplyTarget::Topic(topic) => Some(topic),
            ReplyTarget::Held | ReplyTarget::Nowhere => None,
        }
    }
}

impl From<ReplyTarget> for ReplyAddress {
    fn from(target: ReplyTarget) -> Self {
        Self {
            target,
            correlation: None,
            traceparent: None,
        }
    }
}

/// The target of a reply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReplyTarget {
    /// A topic that the transport has checked.
    Topic(String),
    /// Held for pick-up: the outcome is kept under its key and not sent.
    Held,
    /// None: a job of this process tells its listener, a dead letter goes by its kind.
    Nowhere,
}

/// The priority of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Priority {
    /// Runs when nothing else waits.
    Background,
    /// The default.
    #[default]
    Normal,
    /// A person waits for it.
    Interactive,
}

/// A validated request. The store keeps it as a `RequestRow`, where a field that is added needs a default for the rows of
/// earlier versions.
#[derive(Debug, Clone, PartialEq)]
pub struct NewJob {
    /// The key of the job.
    pub key: JobKey,
    /// A digest of the request's body: the same id with another body is refused.
    pub body_digest: [u8; 32],
    /// The conversation.
    pub messages: Vec<Message>,
    /// The images that the messages name by their index.
    pub images: Vec<RequestImage>,
    /// The maximum number of new tokens.
    pub max_tokens: usize,
    /// The parameters of sampling.
    pub sampling: Sampling,
    /// Stop strings.
    pub stop: Vec<String>,
    /// The part of the conversation that is left out where it is too long. Of no meaning once the prompt is encoded.
    pub truncation: Truncation,
    /// Whether chunks are published as the text grows.
    pub stream: bool,
    /// Whether chunks are published as the prompt is computed.
    pub progress: bool,
    /// The priority of a job.
    pub priority: Priority,
    /// The time left until the answer is of no use.
    pub deadline: Option<Duration>,
    /// The session of the same client that the request continues, or begins.
    pub session: Option<String>,
    /// The address of the replies.
    pub reply: ReplyAddress,
    /// The size of the request's payload in bytes, for the audit; `None` for an internal job, and after a restart.
    pub payload_bytes: Option<usize>,
    /// The receipt of the request's message; `None` where the broker never redelivers it.
    pub receipt: Option<Receipt>,
}

/// An image of a request. Its content is in no log: `Debug` shows its size.
#[derive(Clone, PartialEq, Eq)]
pub struct RequestImage {
    /// The file as the client sent it: PNG, JPEG or WebP.
    pub file: Arc<[u8]>,
    /// How closely the model looks at it.
    pub detail: Detail,
}

impl std::fmt::Debug for RequestImage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RequestImage")
            .field("bytes", &self.file.len())
            .field("detail", &self.detail)
            .finish()
    }
}

impl NewJob {
    /// Returns the id of the trace that the request is part of, for logs.
    pub fn trace_id(&self) -> Option<&str> {
        self.reply.traceparent.as_ref().map(TraceParent::trace_id)
    }
}
