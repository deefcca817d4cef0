//! Replies to clients.

use std::sync::Arc;
use std::time::Duration;

use phi_edge_job::{ErrorCode, FinishReason};
use phi_edge_rules::Published;

use crate::job::{JobKey, ReplyAddress};

/// One message to a client.
#[derive(Debug, Clone, PartialEq)]
pub struct Reply {
    /// The key of its job.
    pub key: JobKey,
    /// Its address.
    pub address: ReplyAddress,
    /// Its content.
    pub body: ReplyBody,
    /// The number of a message that is kept until it is passed to `Service::delivered`, when the broker has it; `None` for
    /// one that is not kept.
    pub delivery: Option<u64>,
}

/// The content of a reply, by its kind.
#[derive(Debug, Clone, PartialEq)]
pub enum ReplyBody {
    /// A piece of the text as it grows, or the progress of the prompt; its loss does no harm.
    Chunk {
        /// 1, and one more after each restart of the job.
        attempt: u32,
        /// 0, 1, 2, … within the attempt.
        seq: u32,
        /// The new text; empty with `progress`.
        delta: String,
        /// The part of the prompt that is computed.
        progress: Option<PromptProgress>,
    },
    /// The answer.
    Final(Answer),
    /// The reason why there is no answer.
    Error(Refusal),
    /// A dead letter for the operator, which goes to no client.
    DeadLetter(DeadLetter),
    /// An event of a rule.
    Event(Box<Published>),
}

impl ReplyBody {
    /// Returns the size of its texts, in bytes.
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

/// The part of a prompt that is computed, in tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PromptProgress {
    /// The number of tokens that are computed, with those of the prefix cache.
    pub done: usize,
    /// The number of tokens of the prompt.
    pub total: usize,
}

/// A report of a message that could not be served. Where the letter itself can't be delivered, the link leaves out the texts
/// that are not the node's own (`DeadLetterContent` of phi-edge-mqtt).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeadLetter {
    /// An error code's word, or [`DeadLetter::UNDELIVERABLE`].
    pub reason: String,
    /// The explanation, in one line.
    pub message: String,
    /// The topic that the original came from, or should have gone to.
    pub topic: String,
    /// The request's id, if it has one.
    pub id: Option<String>,
    /// The original, or its beginning: see [`DeadLetter::beginning`].
    pub payload: Vec<u8>,
    /// The original's length.
    pub bytes: usize,
}

impl DeadLetter {
    /// The maximum size of the part of an original that a dead letter repeats, in bytes.
    pub const MAX_ORIGINAL_BYTES: usize = 64 << 10;
    /// The reason of a letter about a message that can't be published. It tells facts of the message and quotes nothing.
    pub const UNDELIVERABLE: &str = "undeliverable";

    /// Returns the part of an original that is kept: letters wait in memory and in the store.
    pub fn beginning(original: &[u8]) -> Vec<u8> {
        original
            .get(..Self::MAX_ORIGINAL_BYTES)
            .unwrap_or(original)
            .to_vec()
    }
}

/// A finished answer. A field that is added needs a default in the store, for the rows of earlier versions.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    /// The same for every copy of this reply.
    pub reply_id: String,
    /// The whole text.
    pub text: String,
    /// The reason why it ended.
    pub finish_reason: FinishReason,
    /// The number of tokens of the prompt.
    pub prompt_tokens: usize,
    /// The number of new tokens.
    pub completion_tokens: usize,
    /// The number of prompt tokens whose keys and values were reused.
    pub cached_tokens: usize,
    /// The number of tokens of the conversation that the prompt does not have, because it was too long.
    pub left_out_tokens: usize,
    /// The number of tokens of the prompt that are places of images.
    pub image_tokens: usize,
    /// The time from acceptance to the start.
    pub queued: Duration,
    /// The time from the start to the first token.
    pub prefill: Duration,
    /// The time from the first token to the end.
    pub decode: Duration,
    /// The name of the model.
    pub model: Arc<str>,
}

/// The reason why a request gets no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{code}: {message}")]
pub struct Refusal {
    /// The same for every copy of this reply.
    pub reply_id: String,
    /// The error code, for programs.
    pub code: ErrorCode,
    /// One line for people: what happened and what to do.
    pub message: String,
    /// The time until a retry is worthwhile.
    pub retry_after: Option<Duration>,
}
