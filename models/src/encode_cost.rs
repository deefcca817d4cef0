//! The cost and the limits of encoding a conversation.

use crate::error::ModelError;
use crate::pieces::MEMORY_PER_BYTE;

/// Copies of a conversation's text at once while its prompt is made: broken spellings, the template's values and its whole
/// text, the part that is encoded; two more for what allocators keep.
pub(crate) const TEXT_COPIES: usize = 8;

/// The upper bounds of encoding a conversation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EncodeCost {
    /// A lower bound of its prompt's tokens.
    pub at_least: usize,
    /// Bytes of memory.
    pub memory: usize,
}

impl EncodeCost {
    /// The memory for a conversation of `bytes` of text, of which nothing else is known.
    pub fn memory_for(bytes: usize) -> usize {
        bytes.saturating_mul(MEMORY_PER_BYTE + TEXT_COPIES)
    }

    /// The memory for measuring a conversation of `bytes` of text.
    pub fn memory_of_measuring(bytes: usize) -> usize {
        bytes.saturating_mul(TEXT_COPIES)
    }
}

/// The error of a conversation without a prompt within a limit.
#[derive(Debug, thiserror::Error)]
pub enum EncodeError {
    /// It has more tokens than there is room for.
    #[error("the prompt has {}{tokens} tokens", if *.exact { "" } else { "at least " })]
    TooLong {
        /// Its tokens, or a lower bound of them.
        tokens: usize,
        /// Whether that is the exact number.
        exact: bool,
    },
    /// It can't be encoded at all.
    #[error(transparent)]
    Model(#[from] ModelError),
}
