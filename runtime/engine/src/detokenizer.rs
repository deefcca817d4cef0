//! How text comes out of token ids, one id at a time.

use crate::ids::TokenId;

/// Turns one sequence's new ids into text. A fresh one per answer; `models` implements it.
pub trait Detokenizer: Send {
    /// Takes the next id and returns the text that is certain by now: whole UTF-8 characters, possibly none.
    fn push(&mut self, id: TokenId) -> String;

    /// What is still held back at the end (a truncated character becomes U+FFFD).
    fn finish(&mut self) -> String;
}
