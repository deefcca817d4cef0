//! An estimate of the time that a prompt takes, from the measured speed of prefill.
//!
//! It is made to be too short rather than too long, since requests are refused by it: the speed is the best one that was
//! measured on prompts that are not longer, and what of the prompt came before counts as cached.

use std::collections::VecDeque;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

use crate::request::{Finish, Summary};
use crate::symbol::Symbol;

/// The fewest computed tokens of a measured prefill: in fewer, the time that each run takes anyway outweighs the tokens'.
const MIN_MEASURED_TOKENS: usize = 256;
/// The weight of a measurement that is slower than those before it: others may have run beside it.
const SLOWER_WEIGHT: f64 = 0.2;
/// The factor of the speeds after a refusal. A refused prompt measures nothing, so that a node which has become faster
/// would refuse for ever.
const REFUSAL_FACTOR: f64 = 1.05;
/// The number of classes of prompts by their length; each is up to twice as long as the one before.
const CLASSES: usize = 32;
/// The number of prompts that are remembered.
const MAX_PROMPTS: usize = 64;
/// The tokens of a block: prefixes are compared by blocks.
const BLOCK_TOKENS: usize = 256;

/// The measured speed of prefill, and the prompts that the prefix cache may hold.
#[derive(Debug, Default)]
pub struct PrefillEstimate {
    /// Tokens per second, by the length of the prompt.
    speeds: [Option<f64>; CLASSES],
    /// Of the newest prompts, the hash of each prefix of whole blocks.
    prompts: VecDeque<Vec<u64>>,
}

/// The estimated time of a prompt.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PrefillTime {
    /// The number of its tokens that are to be computed.
    pub new_tokens: usize,
    /// The time that they take, without that of others.
    pub time: Duration,
}

impl PrefillEstimate {
    /// Adds the time of a finished answer's prompt.
    pub fn observe(&mut self, summary: &Summary) {
        let computed = summary.prompt_tokens.saturating_sub(summary.cached_tokens);
        let seconds = summary.prefill.as_secs_f64();
        let cut_short =
            matches!(summary.finish, Finish::Cancelled | Finish::Deadline) && summary.tokens.is_empty();
        if computed < MIN_MEASURED_TOKENS || seconds <= 0.0 || cut_short {
            return;
        }
        let measured = number(computed) / seconds;
        if let Some(speed) = self.speeds.get_mut(class_of(summary.prompt_tokens)) {
            *speed = Some(match *speed {
                Some(known) if measured < known => known + SLOWER_WEIGHT * (measured - known),
                _ => measured,
            });
        }
    }

    /// Returns the time that a prompt takes at least; `None` where nothing was measured on prompts of its length or less.
    pub fn estimate(&self, prompt: &[Symbol]) -> Option<PrefillTime> {
        let measured = self.speeds.get(..=class_of(prompt.len()))?.iter().flatten();
        // Of the prompts that are the most like it.
        let speed = measured.last()?;
        let new_tokens = prompt.len() - self.known_prefix(prompt);
        let time = Duration::try_from_secs_f64(number(new_tokens) / speed).ok()?;
        Some(PrefillTime { new_tokens, time })
    }

    /// Remembers a prompt that will be computed: others may begin like it.
    pub fn accepted(&mut self, prompt: &[Symbol]) {
        let blocks = prefix_hashes(prompt);
        if !blocks.is_empty() {
            self.prompts.truncate(MAX_PROMPTS - 1);
            self.prompts.push_front(blocks);
        }
    }

    /// Takes note that a prompt is not computed because of its estimate.
    pub fn refused(&mut self) {
        for speed in self.speeds.iter_mut().flatten() {
            *speed *= REFUSAL_FACTOR;
        }
    }

    /// The number of tokens with which a remembered prompt begins, too, in whole blocks.
    fn known_prefix(&self, prompt: &[Symbol]) -> usize {
        let blocks = prefix_hashes(prompt);
        let shared = |known: &Vec<u64>| known.iter().zip(&blocks).take_while(|(a, b)| a == b).count();
        self.prompts.iter().map(shared).max().unwrap_or(0) * BLOCK_TOKENS
    }
}

fn prefix_hashes(prompt: &[Symbol]) -> Vec<u64> {
    let mut hasher = DefaultHasher::new();
    let blocks = prompt.chunks_exact(BLOCK_TOKENS).map(|block| {
        for symbol in block {
            symbol.hash(&mut hasher);
        }
        hasher.finish()
    });
    blocks.collect()
}

fn class_of(tokens: usize) -> usize {
    let class = tokens.checked_ilog2().map_or(0, |class| class as usize);
    class.min(CLASSES - 1)
}

/// A count of tokens. They are far below 2^32; beyond it an estimate may as well saturate.
fn number(tokens: usize) -> f64 {
    f64::from(u32::try_from(tokens).unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::TokenId;

    fn summary(prompt_tokens: usize, cached_tokens: usize, seconds: u64) -> Summary {
        Summary {
            finish: Finish::Stop,
            tokens: vec![TokenId(1)],
            prompt_tokens,
            cached_tokens,
            draft_tokens: 0,
            accepted_draft_tokens: 0,
            queued: Duration::ZERO,
            prefill: Duration::from_secs(seconds),
            decode: Duration::ZERO,
        }
    }

    fn prompt(tokens: u32) -> Vec<Symbol> {
        (0..tokens).map(|id| Symbol::Token(TokenId(id))).collect()
    }

    fn check(prefill: &PrefillEstimate, tokens: u32, expected: Option<f64>) {
        let estimate = prefill.estimate(&prompt(tokens));
        let seconds = estimate.map(|estimate| estimate.time.as_secs_f64());
        match (seconds, expected) {
            (None, None) => {}
            (Some(seconds), Some(expected)) if (seconds - expected).abs() < 0.01 => {}
            _ => panic!("{tokens} tokens: {seconds:?}, expected {expected:?}"),
        }
    }

    #[test]
    fn nothing_is_estimated_before_it_was_measured_on_prompts_of_that_length_or_less() {
        let mut prefill = PrefillEstimate::default();
        check(&prefill, 10_000, None);
        // Short, mostly cached, or cut short: none of these tells the speed.
        prefill.observe(&summary(100, 0, 10));
        prefill.observe(&summary(2000, 1900, 10));
        prefill.observe(&Summary {
            finish: Finish::Deadline,
            tokens: Vec::new(),
            ..summary(2000, 0, 10)
        });
        check(&prefill, 10_000, None);
        prefill.observe(&summary(2000, 1000, 10));
        check(&prefill, 10_000, Some(100.0));
        check(&prefill, 1000, None);
        // A longer context is slower.
        prefill.observe(&summary(9000, 0, 180));
        check(&prefill, 10_000, Some(200.0));
        check(&prefill, 2000, Some(20.0));
    }

    #[test]
    fn a_slow_prompt_among_fast_ones_counts_little_and_a_refusal_raises_the_speed() {
        let mut prefill = PrefillEstimate::default();
        for (took, expected) in [(10, 10.0), (20, 11.111), (5, 5.0)] {
            prefill.observe(&summary(1000, 0, took));
            check(&prefill, 1000, Some(expected));
        }
        prefill.refused();
        check(&prefill, 1000, Some(5.0 / REFUSAL_FACTOR));
    }

    #[test]
    fn what_was_computed_before_takes_no_time() {
        let mut prefill = PrefillEstimate::default();
        prefill.observe(&summary(1000, 0, 10));
        prefill.accepted(&prompt(2000));
        let new_tokens = |prefill: &PrefillEstimate, prompt: &[Symbol]| {
            prefill.estimate(prompt).map(|estimate| estimate.new_tokens)
        };
        assert_eq!(new_tokens(&prefill, &prompt(4000)), Some(4000 - 7 * BLOCK_TOKENS));
        let mut other = prompt(4000);
        other[300] = Symbol::Token(TokenId(1));
        assert_eq!(new_tokens(&prefill, &other), Some(4000 - BLOCK_TOKENS));
        for _ in 0..MAX_PROMPTS {
            prefill.accepted(&[Symbol::Token(TokenId(9)); BLOCK_TOKENS]);
        }
        assert_eq!(new_tokens(&prefill, &prompt(4000)), Some(4000), "it is forgotten");
    }
}
