//! The members that replies and events share: token usage and errors.

use serde::Serialize;

/// The numbers of tokens of an answer.
#[derive(Serialize)]
#[expect(clippy::struct_field_names, reason = "the contract's names")]
pub(crate) struct Usage {
    pub(crate) prompt_tokens: usize,
    pub(crate) completion_tokens: usize,
    pub(crate) cached_tokens: usize,
    /// Absent where nothing was left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) left_out_tokens: Option<usize>,
    /// Absent where the prompt has no images.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) image_tokens: Option<usize>,
}

/// The reason why there is no answer.
#[derive(Serialize)]
pub(crate) struct ErrorBody<'a> {
    pub(crate) code: &'static str,
    pub(crate) message: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) retry_after_ms: Option<u64>,
}
