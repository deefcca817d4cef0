//! The prefix cache: pinned prefixes, texts that idle rows keep, and prefixes that running sequences share.

use super::Engine;
use super::regime::regime_of;
use crate::decoder::{DecodeError, Decoder, Input, Regime, Row, Step, Wanted};
use crate::ids::TokenId;
use crate::request::Failure;
use crate::rows::{PrefixMatch, common_prefix};
use crate::sequence::Sequence;

impl<D: Decoder> Engine<D> {
    /// Evicts all idle rows except pinned prefixes.
    pub fn forget(&mut self) {
        while let Some(row) = self.rows.evict_oldest(None) {
            self.decoder.release(row);
        }
    }

    /// Computes `prefix` and keeps it for good: a template that many prompts begin with. Meant for the time before
    /// the first request. `saved`, as [`Engine::saved_prefix`] returned it for the same prefix and model, replaces
    /// the computation; returns whether it did.
    pub fn pin(&mut self, prefix: &[TokenId], saved: Option<&[u8]>) -> Result<bool, Failure> {
        let decoder_fault = |error: DecodeError| Failure::Decoder(error.to_string());
        let context = self.decoder.caps().context_length;
        if prefix.is_empty() || prefix.len() >= context {
            return Err(Failure::ContextOverflow {
                prompt: prefix.len(),
                context,
            });
        }
        if let Some(budget) = self.budget_tokens() {
            // At least half of the memory is for requests.
            let room = (budget / 2).saturating_sub(self.rows.pinned_tokens());
            if prefix.len() > room {
                return Err(Failure::MemoryOverflow {
                    prompt: prefix.len(),
                    new: 0,
                    budget: room,
                });
            }
        }
        let Some(row) = self.rows.row_to_pin() else {
            return Err(Failure::Invalid("all rows for pinned prefixes are taken".into()));
        };
        self.decoder.release(row);
        let regime = regime_of(prefix.len(), self.decoder.caps());
        let loaded =
            saved.is_some_and(|saved| self.decoder.load(row, saved).is_ok_and(|len| len == prefix.len()));
        let mut computed = if loaded { prefix.len() } else { 0 };
        while computed < prefix.len() {
            let end = prefix.len().min(computed + self.config.prefill_chunk);
            self.decoder.ensure(row, end).map_err(decoder_fault)?;
            let part = Row {
                row,
                past: computed,
                shared: &[],
                input: Input::Tokens(&prefix[computed..end]),
                logits: Wanted::None,
                regime,
            };
            self.decoder
                .run(&Step { rows: &[part] }, &self.no_interrupt)
                .map_err(decoder_fault)?;
            computed = end;
        }
        self.rows.leave(row, prefix.to_vec(), regime);
        self.rows.pin(row);
        Ok(loaded)
    }

    /// The keys and values of a pinned prefix as bytes, for [`Engine::pin`] at the next start.
    pub fn saved_prefix(&mut self, prefix: &[TokenId]) -> Option<Vec<u8>> {
        let row = self.rows.pinned(prefix)?;
        self.decoder.save(row, prefix.len()).ok()
    }

    /// The idle row that shares the longest prefix with `prompt`.
    pub(super) fn cached_prefix(&self, prompt: &[TokenId], regime: Regime) -> Option<PrefixMatch> {
        // The last token is always computed: its logits choose the next one.
        let most = prompt.len().saturating_sub(1);
        self.rows
            .best_match(prompt, most, regime)
            .filter(|_| self.config.prefix_cache)
    }

    /// Copies the shared prefix from another row into the sequence's own.
    pub(super) fn reuse(&mut self, sequence: &mut Sequence, found: Option<PrefixMatch>) {
        // Memory that the sequence will overwrite stays allocated: the system need not provide it again.
        let reserved = self.reserved_tokens(&sequence.request);
        self.decoder.truncate(sequence.row, reserved);
        let Some(found) = found.filter(|found| found.len > sequence.computed) else {
            return;
        };
        if found.row != sequence.row {
            let copied = self
                .decoder
                .ensure(sequence.row, found.len)
                .and_then(|()| self.decoder.copy(found.row, sequence.row, 0..found.len));
            if copied.is_err() {
                // Only time is lost: the prompt is computed.
                return;
            }
            if self.rows.is_idle(found.row) {
                self.rows.touch(found.row);
            }
        }
        sequence.computed = found.len;
        // Beyond the boundary the sequence's own new tokens are recomputed as well.
        sequence.cached = found.len.min(sequence.request.prompt.len());
    }

    /// Copies what a running sequence has computed of the same prefix in the meantime.
    pub(super) fn reuse_running(&mut self, index: usize) {
        if !self.config.prefix_cache {
            return;
        }
        let sequence = &self.running[index];
        let most = sequence.tokens.len() - 1;
        let best = self
            .running
            .iter()
            .filter(|other| other.id() != sequence.id() && other.regime == sequence.regime)
            .map(|other| PrefixMatch {
                row: other.row,
                len: common_prefix(&other.tokens[..other.computed], &sequence.tokens).min(most),
            })
            .chain(self.rows.best_match(&sequence.tokens, most, sequence.regime))
            .max_by_key(|found| found.len);
        if best.is_some_and(|found| found.len > sequence.computed) {
            let mut sequence = self.running.swap_remove(index);
            self.reuse(&mut sequence, best);
            self.running.push(sequence);
            let last = self.running.len() - 1;
            self.running.swap(index, last);
        }
    }
}
