//! What is reserved of the memory budget for a running sequence.

use crate::decoder::SharedSpan;

/// The most that a running sequence may come to hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Reservation {
    /// The prompt and all new tokens.
    pub(crate) tokens: usize,
    /// Whether it may cross the rope boundary. Then it is recomputed and reads nothing from other rows any more, so all of
    /// its tokens are reserved; and no row reads from it, since its keys and values don't last.
    pub(crate) may_cross: bool,
}

impl Reservation {
    /// The number of tokens that the row may come to hold itself beside those of `spans`.
    pub(super) fn own_tokens(self, spans: &[SharedSpan]) -> usize {
        let shared = spans.last().map_or(0, |span| span.end);
        self.tokens
            .saturating_sub(if self.may_cross { 0 } else { shared })
    }
}
