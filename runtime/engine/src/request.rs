//! The engine's requests and events.

use std::time::Duration;

use crate::detokenizer::Detokenizer;
use crate::ids::{RequestId, TokenId};
use crate::image::Image;
use crate::symbol::Symbol;

/// A request: one answer to generate.
pub struct GenerateRequest {
    /// The caller's id; must not be in use.
    pub id: RequestId,
    /// The prompt. Not empty.
    pub prompt: Vec<Symbol>,
    /// The images that the prompt names.
    pub images: Vec<Image>,
    /// The most new tokens, the stop token not counted. At least 1.
    pub max_tokens: usize,
    /// The sampling settings.
    pub sampling: Sampling,
    /// The stop ids and strings.
    pub stop: Stop,
    /// The detokenizer of the new ids.
    pub detokenizer: Box<dyn Detokenizer>,
    /// Time since the engine's epoch after which the answer is of no use.
    pub deadline: Option<Duration>,
}

/// Sampling settings, applied in this order: repetition penalty, temperature, top-k, top-p, min-p.
#[derive(Debug, Clone, PartialEq)]
pub struct Sampling {
    /// 0 is greedy (the largest logit, the lowest id among equals).
    pub temperature: f32,
    /// Keep the k most probable; 0 keeps all.
    pub top_k: usize,
    /// Keep the smallest set of this total probability (nucleus, arXiv 1904.09751); 1 keeps all.
    pub top_p: f32,
    /// Keep tokens of at least this share of the best one's probability (arXiv 2407.01082); 0 keeps all.
    pub min_p: f32,
    /// Divides positive and multiplies negative logits of tokens seen before (arXiv 1909.05858); 1 is none.
    pub repetition_penalty: f32,
    /// The seed: the same seed gives the same text.
    pub seed: u64,
}

impl Default for Sampling {
    fn default() -> Self {
        Self {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            seed: 0,
        }
    }
}

/// The stop conditions of an answer.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Stop {
    /// End-of-sequence ids; not part of the answer.
    pub ids: Vec<TokenId>,
    /// Strings; the text ends before the first of them. None is empty.
    pub strings: Vec<String>,
}

/// An event of a request. A request ends with exactly one `Finished` or `Failed`.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// Its prefill began.
    Started {
        /// The request.
        id: RequestId,
    },
    /// A run has computed a part of its prompt, or of a prefix of it that is computed for another request.
    Progress {
        /// The request.
        id: RequestId,
        /// Tokens of the prompt, and places of its images, that are computed, with those of the prefix cache. An image of which
        /// crops are encoded counts only as far as its places are computed.
        done: usize,
        /// Tokens of the prompt.
        total: usize,
    },
    /// New text: whole characters that no stop string can take back.
    Text {
        /// The request.
        id: RequestId,
        /// The text.
        delta: String,
    },
    /// The answer is complete.
    Finished {
        /// The request.
        id: RequestId,
        /// Why and at what cost.
        summary: Summary,
    },
    /// The request failed.
    Failed {
        /// The request.
        id: RequestId,
        /// Why.
        reason: Failure,
    },
}

/// The end of an answer. The text is the concatenation of the `Text` events.
#[derive(Debug, Clone, PartialEq)]
pub struct Summary {
    /// Why it ended.
    pub finish: Finish,
    /// The new ids, without the stop id.
    pub tokens: Vec<TokenId>,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Places of images in the prompt.
    pub image_tokens: usize,
    /// Prompt tokens whose keys and values came from the prefix cache.
    pub cached_tokens: usize,
    /// Draft tokens that were verified.
    pub draft_tokens: usize,
    /// Draft tokens that were accepted: runs that were saved.
    pub accepted_draft_tokens: usize,
    /// From submission to start.
    pub queued: Duration,
    /// From start to the first token.
    pub prefill: Duration,
    /// The runs within `prefill` that computed its prompt.
    pub prefill_runs: PrefillRuns,
    /// From the first token to the end.
    pub decode: Duration,
}

/// The runs that computed a prompt, without those of others, waits and pauses between them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PrefillRuns {
    /// Tokens that they computed.
    pub tokens: usize,
    /// The end of those tokens in the prompt.
    pub end: usize,
    /// The time that they took.
    pub time: Duration,
}

/// Why an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finish {
    /// A stop id or a stop string.
    Stop,
    /// `max_tokens`, or the context is full.
    Length,
    /// The text repeated itself without end; reported as `length`.
    Repetition,
    /// [`crate::Engine::cancel`].
    Cancelled,
    /// Its deadline passed.
    Deadline,
}

/// Why a request can't be answered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// It does not fit the context.
    #[error("the prompt has {prompt} tokens; with room for one new token the context takes {context}")]
    ContextOverflow {
        /// Tokens of the prompt.
        prompt: usize,
        /// Tokens a sequence can have.
        context: usize,
    },
    /// It does not fit the memory, even alone.
    #[error(
        "the prompt of {prompt} tokens and {new} new ones need more key-value memory than there is: {budget} tokens fit"
    )]
    MemoryOverflow {
        /// Tokens of the prompt.
        prompt: usize,
        /// New tokens asked for, as far as the context takes them.
        new: usize,
        /// Tokens that the memory holds.
        budget: usize,
    },
    /// It is malformed (empty prompt, id out of the vocabulary, duplicate request id, …).
    #[error("{0}")]
    Invalid(String),
    /// The pixels of one of its images can't be made; one line for the client.
    #[error("{0}")]
    Image(String),
    /// The model failed.
    #[error("{0}")]
    Decoder(String),
}
