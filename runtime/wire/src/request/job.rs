//! The job that a request becomes.

use std::time::Duration;

use phi_edge_api::{JobKey, NewJob, Receipt, ReplyAddress, Sampling};

use super::Request;

/// The parts of a job that the transport knows, not the payload.
#[derive(Debug, Clone, PartialEq)]
pub struct Envelope {
    /// The job's key. Its id is the request's, if the request has one.
    pub key: JobKey,
    /// The address of the replies.
    pub reply: ReplyAddress,
    /// The digest of the payload: the same id with another payload is refused.
    pub body_digest: [u8; 32],
    /// The bytes of the payload.
    pub payload_bytes: usize,
    /// The time after which the transport drops the request; the deadline is not later.
    pub expiry: Option<Duration>,
    /// The seed of a request that gives none.
    pub seed: u64,
    /// The receipt of the message that the request came by; `None` if it is never delivered again.
    pub receipt: Option<Receipt>,
}

impl Request {
    /// Returns the job of this request.
    pub fn into_job(self, envelope: Envelope) -> NewJob {
        let deadline = match (self.deadline, envelope.expiry) {
            (Some(asked), Some(expiry)) => Some(asked.min(expiry)),
            (asked, expiry) => asked.or(expiry),
        };
        let seed = if self.seeded {
            self.sampling.seed
        } else {
            envelope.seed
        };
        NewJob {
            key: envelope.key,
            body_digest: envelope.body_digest,
            messages: self.messages,
            images: self.images,
            max_tokens: self.max_tokens,
            sampling: Sampling {
                seed,
                ..self.sampling
            },
            stop: self.stop,
            truncation: self.truncation,
            stream: self.stream,
            progress: self.progress,
            priority: self.priority,
            deadline,
            session: self.session,
            reply: envelope.reply,
            payload_bytes: Some(envelope.payload_bytes),
            receipt: envelope.receipt,
        }
    }
}
