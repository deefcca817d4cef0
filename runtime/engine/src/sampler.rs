//! The sampler: it chooses the next token from a row of logits.
//!
//! The order of the steps and their definitions are those of Hugging Face's logits processors:
//! repetition penalty, temperature, top-k, top-p, min-p.

use crate::ids::TokenId;
use crate::request::Sampling;

/// One sequence's sampler. Draws are a function of the seed and the number of the draw alone, so that a
/// resumed or re-verified sequence draws the same.
#[derive(Debug)]
pub(crate) struct Sampler {
    settings: Sampling,
    /// `seen[id]`: the token stands in the prompt or the text. Kept only under a repetition penalty.
    seen: Vec<bool>,
    draws: u64,
    candidates: Vec<Candidate>,
}

#[derive(Debug, Clone, Copy)]
struct Candidate {
    id: u32,
    /// A logit, later a probability.
    weight: f32,
}

/// The error of logits without a single number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "the model returned no usable logits (all NaN or -inf): its weights or the provider's arithmetic are broken"
)]
pub(crate) struct NoLogits;

impl Sampler {
    /// A sampler for one sequence.
    pub(crate) fn new(settings: Sampling) -> Self {
        Self {
            settings,
            seen: Vec::new(),
            draws: 0,
            candidates: Vec::new(),
        }
    }

    /// Counts a token of the prompt or the text as seen.
    pub(crate) fn observe(&mut self, id: TokenId) {
        if self.penalises() {
            let index = id.0 as usize;
            if self.seen.len() <= index {
                self.seen.resize(index + 1, false);
            }
            self.seen[index] = true;
        }
    }

    /// Chooses from `logits` (one per token of the vocabulary).
    pub(crate) fn sample(&mut self, logits: &[f32]) -> Result<TokenId, NoLogits> {
        if self.is_greedy() {
            return self.greedy(logits);
        }
        self.gather(logits);
        let draw = uniform(self.settings.seed, self.draws);
        self.draws += 1;
        self.sort_and_cut_to_top_k();
        self.softmax()?;
        self.cut_to_top_p();
        self.cut_to_min_p();
        let total: f64 = self.candidates.iter().map(|c| f64::from(c.weight)).sum();
        let mut left = draw * total;
        for candidate in &self.candidates {
            left -= f64::from(candidate.weight);
            if left < 0.0 {
                return Ok(TokenId(candidate.id));
            }
        }
        // Rounding can leave a sliver above the last candidate.
        self.candidates.last().map(|c| TokenId(c.id)).ok_or(NoLogits)
    }

    /// Whether the most likely token is taken without a draw. This includes subnormal temperatures: they are as good
    /// as 0, and are 0 where the processor flushes such numbers to zero, which libraries set for their threads.
    fn is_greedy(&self) -> bool {
        let draws = self.settings.temperature >= f32::MIN_POSITIVE;
        !draws
    }

    fn penalises(&self) -> bool {
        // Exactly 1 is the off switch.
        (self.settings.repetition_penalty - 1.0).abs() > f32::EPSILON
    }

    fn penalised(&self, index: usize, logit: f32) -> f32 {
        if !self.seen.get(index).copied().unwrap_or(false) {
            return logit;
        }
        let penalty = self.settings.repetition_penalty;
        let penalised = if logit > 0.0 {
            logit / penalty
        } else {
            logit * penalty
        };
        // A number stays one: -inf would forbid the token, and +inf would take everything.
        if logit.is_finite() {
            penalised.clamp(f32::MIN, f32::MAX)
        } else {
            penalised
        }
    }

    fn greedy(&self, logits: &[f32]) -> Result<TokenId, NoLogits> {
        let penalises = self.penalises();
        let mut best = None;
        let mut best_logit = f32::NEG_INFINITY;
        for (index, &logit) in logits.iter().enumerate() {
            let logit = if penalises {
                self.penalised(index, logit)
            } else {
                logit
            };
            // NaN compares false and is passed over; among equals the lowest id wins.
            if logit > best_logit {
                best_logit = logit;
                best = Some(index);
            }
        }
        best.and_then(|index| u32::try_from(index).ok())
            .map(TokenId)
            .ok_or(NoLogits)
    }

    fn gather(&mut self, logits: &[f32]) {
        let mut candidates = std::mem::take(&mut self.candidates);
        candidates.clear();
        for ((index, &logit), id) in logits.iter().enumerate().zip(0u32..) {
            let weight = self.penalised(index, logit);
            if weight > f32::NEG_INFINITY {
                candidates.push(Candidate { id, weight });
            }
        }
        self.candidates = candidates;
    }

    fn sort_and_cut_to_top_k(&mut self) {
        // Equal weights are ordered by id, so that the order never depends on the sorting algorithm.
        let order = |a: &Candidate, b: &Candidate| b.weight.total_cmp(&a.weight).then(a.id.cmp(&b.id));
        let keep = self.settings.top_k;
        if keep > 0 && keep < self.candidates.len() {
            self.candidates.select_nth_unstable_by(keep - 1, order);
            self.candidates.truncate(keep);
        }
        self.candidates.sort_unstable_by(order);
    }

    /// Turns logits, in descending order, into probabilities at the temperature.
    fn softmax(&mut self) -> Result<(), NoLogits> {
        let best = self.candidates.first_mut().ok_or(NoLogits)?;
        let temperature = self.settings.temperature;
        let max = best.weight;
        // An infinite logit takes everything, and so does the first of the largest where the temperature is next to none.
        if !(max / temperature).is_finite() {
            best.weight = 1.0;
            self.candidates.truncate(1);
            return Ok(());
        }
        let mut total = 0.0f64;
        for candidate in &mut self.candidates {
            // The maximum is subtracted first: divided by a small temperature, logits leave the range of their type.
            candidate.weight = ((candidate.weight - max) / temperature).exp();
            total += f64::from(candidate.weight);
        }
        for candidate in &mut self.candidates {
            #[expect(clippy::cast_possible_truncation, reason = "a probability fits f32")]
            let probability = (f64::from(candidate.weight) / total) as f32;
            candidate.weight = probability;
        }
        Ok(())
    }

    fn cut_to_top_p(&mut self) {
        if self.settings.top_p >= 1.0 {
            return;
        }
        let mut cumulative = 0.0f32;
        let keep = self
            .candidates
            .iter()
            .position(|candidate| {
                cumulative += candidate.weight;
                cumulative >= self.settings.top_p
            })
            .map_or(self.candidates.len(), |last| last + 1);
        self.candidates.truncate(keep);
    }

    fn cut_to_min_p(&mut self) {
        if self.settings.min_p <= 0.0 {
            return;
        }
        if let Some(best) = self.candidates.first() {
            let least = best.weight * self.settings.min_p;
            let keep = self
                .candidates
                .partition_point(|candidate| candidate.weight >= least);
            self.candidates.truncate(keep.max(1));
        }
    }
}

/// Draw number `draw` of `seed`, uniform in [0, 1): the finaliser of SplitMix64 (Steele, Lea, Flood 2014)
/// over a counter, which needs no state.
fn uniform(seed: u64, draw: u64) -> f64 {
    const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;
    // The seed is mixed once before the counter is added: neighbouring seeds must not share draws.
    let mut z = mix(seed.wrapping_add(GOLDEN)).wrapping_add(GOLDEN.wrapping_mul(draw.wrapping_add(1)));
    z = mix(z);
    #[expect(clippy::cast_precision_loss, reason = "53 bits fit an f64 exactly")]
    let fraction = (z >> 11) as f64;
    fraction / 9_007_199_254_740_992.0
}

fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests;
