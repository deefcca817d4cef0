//! Why there is no prompt.

use thiserror::Error;

/// Why a template can't be used, or no prompt be made of it. Each is one line for the operator.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum SummaryError {
    /// The template is wrong, or what it does fails.
    #[error("line {line} of the prompt: {message}")]
    Template {
        /// Counted from 1.
        line: usize,
        /// What is wrong.
        message: String,
    },
    /// There is no such built-in template.
    #[error("there is no template {name:?}; there are {known}")]
    UnknownTemplate {
        /// The name asked for.
        name: String,
        /// All names.
        known: String,
    },
    /// Even without messages the prompt is too long.
    #[error("the prompt takes {needed} tokens before its first message, and {allowed} are allowed")]
    DoesNotFit {
        /// Tokens it takes.
        needed: usize,
        /// Tokens it may take.
        allowed: usize,
    },
    /// The model's tokenizer refuses it.
    #[error("the prompt can't be encoded: {0}")]
    Encode(String),
}
