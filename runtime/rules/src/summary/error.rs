//! The errors of prompts.

use thiserror::Error;

/// The name of a rule's own text among the templates.
pub(super) const RULE_TEMPLATE: &str = "prompt";

/// An error of a template or of its prompt. Each is one line for the operator.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum SummaryError {
    /// The template is wrong, or its rendering fails.
    #[error("line {line} of the prompt: {message}")]
    Template {
        /// Counted from 1.
        line: usize,
        /// The error.
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
    /// The model's tokenizer refuses the prompt.
    #[error("the prompt can't be encoded: {0}")]
    Encode(String),
}

impl SummaryError {
    /// An error of the template engine, as one line with the line of the template.
    pub(super) fn of_template(error: &minijinja::Error) -> Self {
        // The cause says more where there is one: an include that fails hides what failed in it.
        let mut cause = error;
        while let Some(inner) =
            std::error::Error::source(cause).and_then(|source| source.downcast_ref::<minijinja::Error>())
        {
            cause = inner;
        }
        let mut message = cause.kind().to_string();
        if let Some(detail) = cause.detail() {
            message = format!("{message}: {detail}");
        }
        if let Some(name) = cause.name().filter(|name| *name != RULE_TEMPLATE) {
            message = format!("{message} (in template {name})");
        }
        Self::Template {
            line: error.line().unwrap_or(1),
            message: message.split_whitespace().collect::<Vec<_>>().join(" "),
        }
    }
}
