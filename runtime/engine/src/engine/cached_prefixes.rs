//! A snapshot of the prefix cache, for those that want to know beside the engine's thread what it holds.

use std::sync::Arc;

use super::Engine;
use super::regime::RopePolicy;
use crate::decoder::{Decoder, Regime};
use crate::ids::{RequestId, RowId};
use crate::rows::common_prefix;
use crate::symbol::Symbol;

/// The tokens that a prompt could take over from idle rows and from the prompts of running sequences at the end of a step.
#[derive(Debug, Clone, Default)]
pub struct CachedPrefixes {
    rows: Vec<CachedRow>,
    rope_policy: RopePolicy,
    rope_boundary: Option<usize>,
}

#[derive(Debug, Clone)]
struct CachedRow {
    source: Source,
    tokens: Arc<[Symbol]>,
    /// The number of `tokens` whose keys and values are computed.
    computed: usize,
    regime: Regime,
}

/// The identity of the tokens of a row: equal ones mean equal tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    /// An idle row, by the time of its last use and its number of tokens.
    Idle(RowId, u64, usize),
    Running(RequestId),
}

impl CachedPrefixes {
    /// The most tokens of `prompt`, with an answer of up to `max_tokens`, that need not be computed.
    pub fn longest(&self, prompt: &[Symbol], max_tokens: usize) -> usize {
        let regime = self
            .rope_policy
            .first_regime(prompt.len(), max_tokens, self.rope_boundary);
        let rows = self.rows.iter().filter(|row| row.regime == regime);
        let shared = rows.map(|row| common_prefix(&row.tokens, prompt).min(row.computed));
        // The last token is always computed: its logits choose the next one.
        shared.max().unwrap_or(0).min(prompt.len().saturating_sub(1))
    }
}

impl<D: Decoder> Engine<D> {
    /// Brings a snapshot of this engine's prefix cache up to date, which is empty where the cache is off. Tokens are copied
    /// only from rows that hold others than before.
    pub fn update_cached_prefixes(&self, snapshot: &mut CachedPrefixes) {
        snapshot.rope_policy = self.config.rope_policy;
        snapshot.rope_boundary = self.decoder.caps().rope_boundary;
        let former = std::mem::take(&mut snapshot.rows);
        if !self.config.prefix_cache {
            return;
        }
        let tokens_of = |source: Source, tokens: &[Symbol]| {
            let known = former.iter().find(|row| row.source == source);
            known.map_or_else(|| tokens.into(), |row| Arc::clone(&row.tokens))
        };
        let idle = self.rows.idle_rows().map(|(row, tokens, regime, last_used)| {
            let source = Source::Idle(row, last_used, tokens.len());
            CachedRow {
                source,
                tokens: tokens_of(source, tokens),
                computed: tokens.len(),
                regime,
            }
        });
        let running = self.running.iter().map(|sequence| {
            let prompt = &sequence.request.prompt;
            let source = Source::Running(sequence.id());
            CachedRow {
                source,
                tokens: tokens_of(source, prompt),
                computed: sequence.computed.min(prompt.len()),
                regime: sequence.regime,
            }
        });
        snapshot.rows = idle.chain(running).collect();
    }
}
