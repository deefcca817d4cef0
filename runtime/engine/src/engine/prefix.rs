//! The prefix cache: pinned prefixes, and texts that idle rows keep.

use super::Engine;
use super::regime::regime_of;
use crate::decoder::{DecodeError, Decoder, Input, Regime, Row, Step, Wanted};
use crate::ids::RowId;
use crate::request::Failure;
use crate::symbol::Symbol;

impl<D: Decoder> Engine<D> {
    /// Evicts all idle rows except pinned prefixes.
    pub fn forget(&mut self) {
        while self.evict_oldest(None) {}
    }

    /// Computes `prefix` and keeps it for good: a template that many prompts begin with. Meant for the time before
    /// the first request. `saved`, as [`Engine::saved_prefix`] returned it for the same prefix and model, replaces
    /// the computation; returns whether it did.
    pub fn pin(&mut self, prefix: &[Symbol], saved: Option<&[u8]>) -> Result<bool, Failure> {
        let context = self.decoder.caps().context_length;
        if prefix.is_empty() || prefix.len() >= context {
            return Err(Failure::ContextOverflow {
                prompt: prefix.len(),
                context,
            });
        }
        if prefix.iter().any(|symbol| symbol.image().is_some()) {
            return Err(Failure::Invalid("a pinned prefix can't have images".into()));
        }
        let bytes = self.rows.bytes();
        if let Some(budget) = self.config.kv_budget {
            // At least half of the memory is for requests.
            let room = (budget / 2).saturating_sub(self.rows.pinned_bytes());
            let room = room.min(budget.saturating_sub(self.rows.committed_bytes(None)));
            if bytes.of(prefix.len()) > room {
                return Err(Failure::MemoryOverflow {
                    prompt: prefix.len(),
                    new: 0,
                    budget: bytes.tokens_in(room),
                });
            }
        }
        let Some(row) = self.rows.row_to_pin() else {
            return Err(Failure::Invalid("all rows for pinned prefixes are taken".into()));
        };
        self.rows.clear(row);
        self.decoder.release(row);
        self.make_room(bytes.of(prefix.len()), None);
        let regime = regime_of(prefix.len(), self.decoder.caps());
        let loaded =
            saved.is_some_and(|saved| self.decoder.load(row, saved).is_ok_and(|len| len == prefix.len()));
        if !loaded && let Err(error) = self.compute_prefix(row, prefix, regime) {
            self.decoder.release(row);
            return Err(Failure::Decoder(error.to_string()));
        }
        self.rows.leave(row, prefix.to_vec(), regime);
        self.rows.pin(row);
        Ok(loaded)
    }

    /// The keys and values of a pinned prefix as bytes, for [`Engine::pin`] at the next start.
    pub fn saved_prefix(&mut self, prefix: &[Symbol]) -> Option<Vec<u8>> {
        let row = self.rows.pinned(prefix)?;
        self.decoder.save(row, prefix.len()).ok()
    }

    /// Computes `prefix` in an empty row, chunk by chunk.
    fn compute_prefix(&mut self, row: RowId, prefix: &[Symbol], regime: Regime) -> Result<(), DecodeError> {
        let mut past = 0;
        for chunk in prefix.chunks(self.config.prefill_chunk) {
            self.decoder.ensure(row, past + chunk.len())?;
            let part = Row {
                row,
                past,
                shared: &[],
                input: Input::of(chunk),
                logits: Wanted::None,
                regime,
            };
            self.decoder.run(&Step { rows: &[part] }, &self.no_interrupt)?;
            past += chunk.len();
        }
        Ok(())
    }
}
