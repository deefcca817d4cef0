//! What a client is told.

use std::sync::Arc;
use std::time::Duration;

use phi_edge_job::{ErrorCode, FinishReason};
use phi_edge_rules::Published;

use crate::job::{JobKey, ReplyAddress};

/// One message to a client.
#[derive(Debug, Clone, PartialEq)]
pub struct Reply {
    /// The job it is about.
    pub key: JobKey,
    /// Where it goes.
    pub address: ReplyAddress,
    /// What it says.
    pub body: ReplyBody,
    /// Names a message that is kept until `Service::delivered` is told that the broker has it; `None` for one
    /// that is not kept.
    pub delivery: Option<u64>,
}

/// The kinds of reply.
#[derive(Debug, Clone, PartialEq)]
pub enum ReplyBody {
    /// Text as it grows; loss does no harm.
    Chunk {
        /// 1, and one more after each restart of the job.
        attempt: u32,
        /// 0, 1, 2, … within the attempt.
        seq: u32,
        /// The new text.
        delta: String,
    },
    /// The answer.
    Final(Answer),
    /// Why there is none.
    Error(Refusal),
    /// For the operator: what could not be served. Its address is nobody's.
    DeadLetter(DeadLetter),
    /// What a rule produced.
    Event(Box<Published>),
}

impl ReplyBody {
    /// Bytes of the texts in it.
    pub fn texts(&self) -> u64 {
        let bytes = match self {
            Self::Chunk { delta, .. } => delta.len(),
            Self::Final(answer) => answer.text.len(),
            Self::Error(refusal) => refusal.message.len(),
            Self::DeadLetter(letter) => letter.message.len() + letter.payload.len(),
            Self::Event(published) => return published.cost(),
        };
        bytes as u64
    }
}

/// What could not be served. Where a letter itself can't be delivered, the link leaves out the texts that are not the
/// node's own (`DeadLetterContent` of phi-edge-mqtt).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeadLetter {
    /// An error code's word, or [`DeadLetter::UNDELIVERABLE`].
    pub reason: String,
    /// One line.
    pub message: String,
    /// Where the original came from, or should have gone.
    pub topic: String,
    /// The request's id, if it has one.
    pub id: Option<String>,
    /// The original, or its beginning: see [`DeadLetter::beginning`].
    pub payload: Vec<u8>,
    /// The original's length.
    pub bytes: usize,
}

impl DeadLetter {
    /// The most bytes of an original that a dead letter repeats.
    pub const ORIGINAL: usize = 64 << 10;
    /// The reason of a letter about a message that can't be published. It tells facts of the message and quotes nothing.
    pub const UNDELIVERABLE: &str = "undeliverable";

    /// What is kept of an original: letters wait in memory and in the store.
    pub fn beginning(original: &[u8]) -> Vec<u8> {
        original.get(..Self::ORIGINAL).unwrap_or(original).to_vec()
    }
}

/// A finished answer. A field that is added needs a default in the store, for the rows of earlier versions.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    /// The same for every copy of this reply.
    pub reply_id: String,
    /// The whole text.
    pub text: String,
    /// Why it ended.
    pub finish_reason: FinishReason,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// New tokens.
    pub completion_tokens: usize,
    /// Prompt tokens that needed no work.
    pub cached_tokens: usize,
    /// From acceptance to start.
    pub queued: Duration,
    /// From start to the first token.
    pub prefill: Duration,
    /// From the first token to the end.
    pub decode: Duration,
    /// The model that wrote it.
    pub model: Arc<str>,
}

/// Why a request gets no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{code}: {message}")]
pub struct Refusal {
    /// The same for every copy of this reply.
    pub reply_id: String,
    /// For programs.
    pub code: ErrorCode,
    /// For people: one line, what and what to do.
    pub message: String,
    /// When to try again.
    pub retry_after: Option<Duration>,
}
