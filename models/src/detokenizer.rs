//! The streaming detokenizer: its pieces together are the decoding of all ids at once.

use std::sync::Arc;

use phi_edge_engine::{Detokenizer, TokenId};
use tokenizers::Tokenizer;

/// The detokenizer of one answer.
///
/// Text is the difference of two decodings: of the last ids given out, and of those with the new ones behind
/// them. That keeps the space between words, which the first word of a decoding loses.
pub(crate) struct StreamDetokenizer {
    tokenizer: Arc<Tokenizer>,
    skip_special: bool,
    /// The ids given out last; they end at a place where decoding can be cut.
    context: Vec<u32>,
    /// Ids whose text is not certain yet.
    pending: Vec<u32>,
}

impl StreamDetokenizer {
    pub(crate) fn new(tokenizer: Arc<Tokenizer>, skip_special: bool) -> Self {
        Self {
            tokenizer,
            skip_special,
            context: Vec::new(),
            pending: Vec::new(),
        }
    }

    fn is_special(&self, id: u32) -> bool {
        self.tokenizer
            .id_to_token(id)
            .is_some_and(|token| self.tokenizer.get_added_vocabulary().is_special_token(&token))
    }

    /// A token of the byte fallback, `<0x0A>`. A run of them is decoded as a whole: if it is malformed,
    /// every byte of it becomes U+FFFD, ASCII ones too, so none of it is certain before its end.
    fn is_byte(&self, id: u32) -> bool {
        self.tokenizer.id_to_token(id).is_some_and(|token| {
            token.len() == 6
                && token
                    .strip_prefix("<0x")
                    .and_then(|rest| rest.strip_suffix('>'))
                    .is_some_and(|hex| u8::from_str_radix(hex, 16).is_ok())
        })
    }

    fn decode(&self, ids: &[u32]) -> String {
        // Ids outside the vocabulary are left out by the library; it has no other error for plain ids.
        self.tokenizer.decode(ids, self.skip_special).unwrap_or_default()
    }

    /// The text of the pending ids behind the context, if the context's text stays as it was.
    fn pending_text(&self) -> Option<String> {
        let before = self.decode(&self.context);
        let mut ids = self.context.clone();
        ids.extend(&self.pending);
        self.decode(&ids).strip_prefix(&before).map(ToOwned::to_owned)
    }

    fn release(&mut self) -> String {
        let Some(text) = self.pending_text() else {
            return String::new();
        };
        if text.is_empty() {
            // Nothing visible yet (a first space that decoding strips, say): it stays context.
            self.context.append(&mut self.pending);
        } else {
            self.context = std::mem::take(&mut self.pending);
        }
        text
    }
}

impl Detokenizer for StreamDetokenizer {
    fn push(&mut self, id: TokenId) -> String {
        // Left out before decoding: it must not split a run of bytes either.
        if self.skip_special && self.is_special(id.0) {
            return String::new();
        }
        self.pending.push(id.0);
        if self.is_byte(id.0) {
            return String::new();
        }
        // Byte-level tokens can end within a character.
        if self
            .pending_text()
            .is_none_or(|text| text.ends_with(char::REPLACEMENT_CHARACTER))
        {
            return String::new();
        }
        self.release()
    }

    fn finish(&mut self) -> String {
        let text = self.pending_text().unwrap_or_else(|| self.decode(&self.pending));
        self.context.clear();
        self.pending.clear();
        text
    }
}
