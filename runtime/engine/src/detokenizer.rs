//! The detokenizer interface: text of token ids, one id at a time.

use crate::ids::TokenId;

/// Turns one sequence's new ids into text. Each answer has its own; `models` implements it.
pub trait Detokenizer: Send {
    /// Adds the next id and returns the text that is certain by now: whole UTF-8 characters, possibly none.
    fn push(&mut self, id: TokenId) -> String;

    /// Ends the text and returns what is still held back (a truncated character becomes U+FFFD).
    fn finish(&mut self) -> String;
}
