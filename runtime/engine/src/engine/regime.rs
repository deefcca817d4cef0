//! The rope regime of sequences: which one a sequence starts in, and how it crosses into the other.

use super::Engine;
use crate::decoder::{Caps, Decoder, Regime};
use crate::request::GenerateRequest;

impl<D: Decoder> Engine<D> {
    /// The regime that a request is computed in from its first token on.
    pub(super) fn initial_regime(&self, request: &GenerateRequest) -> Regime {
        regime_of(request.prompt.len(), self.decoder.caps())
    }

    /// Resets sequences that crossed the rope boundary: keys of one regime are wrong in the other, so they are
    /// recomputed.
    pub(super) fn update_regimes(&mut self) {
        for sequence in &mut self.running {
            let crossed = sequence.regime == Regime::Short
                && regime_of(sequence.tokens.len(), self.decoder.caps()) == Regime::Long;
            if crossed {
                sequence.regime = Regime::Long;
                sequence.cached = 0;
                sequence.computed = 0;
                self.rows.cross(sequence.row);
                self.decoder.release(sequence.row);
            }
        }
    }
}

/// The regime of a sequence of this many tokens.
pub(super) fn regime_of(tokens: usize, caps: &Caps) -> Regime {
    match caps.rope_boundary {
        Some(boundary) if tokens > boundary => Regime::Long,
        _ => Regime::Short,
    }
}
