//! The rope regime of sequences: which one a sequence starts in, and how it crosses into the other.

use super::Engine;
use crate::decoder::{Caps, Decoder, Regime};
use crate::request::GenerateRequest;

/// The moment at which the rope regime of a sequence is decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum RopePolicy {
    /// By the tokens that a sequence has, as the reference does (Hugging Face's `Phi3RotaryEmbedding`): one that crosses
    /// the boundary while it generates is recomputed under the long factors.
    #[default]
    Switch,
    /// At admission, by prompt and [`GenerateRequest::max_tokens`] together: nothing is recomputed within a request.
    Pin,
}

impl RopePolicy {
    /// The regime of a sequence of `prompt` tokens and up to `max_tokens` new ones, from its first token on.
    pub(super) fn first_regime(self, prompt: usize, max_tokens: usize, boundary: Option<usize>) -> Regime {
        let tokens = match self {
            Self::Switch => prompt,
            Self::Pin => prompt.saturating_add(max_tokens),
        };
        regime_beside(tokens, boundary)
    }
}

impl<D: Decoder> Engine<D> {
    /// The regime that a request is computed in from its first token on.
    pub(super) fn initial_regime(&self, request: &GenerateRequest) -> Regime {
        self.config.rope_policy.first_regime(
            request.prompt.len(),
            request.max_tokens,
            self.decoder.caps().rope_boundary,
        )
    }

    /// Resets sequences that crossed the rope boundary: keys of one regime are wrong in the other, so they are
    /// recomputed, as a prompt is: in chunks, between the decode steps of others.
    pub(super) fn update_regimes(&mut self) {
        for sequence in &mut self.running {
            // Never back: under `RopePolicy::Pin` a short sequence may be of the long regime.
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

    /// Of the members of the long regime, by index, those that can share a run ([`Caps::batches_below_boundary`]): all
    /// of them, or the one that has waited longest.
    pub(super) fn long_segment(&self, members: Vec<usize>) -> Vec<usize> {
        let caps = self.decoder.caps();
        let beyond = |&index: &usize| regime_of(self.running[index].tokens.len(), caps) == Regime::Long;
        if caps.batches_below_boundary || members.iter().any(beyond) {
            return members;
        }
        let first = members
            .into_iter()
            .min_by_key(|&index| self.running[index].served);
        first.into_iter().collect()
    }
}

/// The regime of a sequence of this many tokens.
pub(super) fn regime_of(tokens: usize, caps: &Caps) -> Regime {
    regime_beside(tokens, caps.rope_boundary)
}

fn regime_beside(tokens: usize, boundary: Option<usize>) -> Regime {
    match boundary {
        Some(boundary) if tokens > boundary => Regime::Long,
        _ => Regime::Short,
    }
}
