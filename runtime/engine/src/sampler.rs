//! Chooses the next token from a row of logits.
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

/// No logit was a number.
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

    /// Takes note of a token of the prompt or the text.
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
        if self.settings.temperature <= 0.0 {
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

    fn penalises(&self) -> bool {
        // Exactly 1 is the off switch.
        (self.settings.repetition_penalty - 1.0).abs() > f32::EPSILON
    }

    fn penalised(&self, index: usize, logit: f32) -> f32 {
        if self.seen.get(index).copied().unwrap_or(false) {
            let penalty = self.settings.repetition_penalty;
            if logit > 0.0 {
                logit / penalty
            } else {
                logit * penalty
            }
        } else {
            logit
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
            let weight = self.penalised(index, logit) / self.settings.temperature;
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

    fn softmax(&mut self) -> Result<(), NoLogits> {
        let max = self.candidates.first().ok_or(NoLogits)?.weight;
        let mut total = 0.0f64;
        for candidate in &mut self.candidates {
            // An infinite logit takes everything: inf - inf would be NaN.
            #[expect(clippy::float_cmp, reason = "the same value, infinite or not")]
            let is_best = candidate.weight == max;
            let distance = if is_best { 0.0 } else { candidate.weight - max };
            candidate.weight = distance.exp();
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
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sampler(change: impl FnOnce(&mut Sampling)) -> Sampler {
        let mut settings = Sampling {
            temperature: 1.0,
            ..Sampling::default()
        };
        change(&mut settings);
        Sampler::new(settings)
    }

    fn shares(sampler: &mut Sampler, logits: &[f32], draws: usize) -> Vec<f64> {
        let mut counts = vec![0usize; logits.len()];
        for _ in 0..draws {
            counts[sampler.sample(logits).unwrap().0 as usize] += 1;
        }
        #[expect(clippy::cast_precision_loss, reason = "small counts")]
        counts.iter().map(|&c| c as f64 / draws as f64).collect()
    }

    #[test]
    fn greedy_takes_the_lowest_id_among_equals_and_passes_over_nan() {
        let mut greedy = Sampler::new(Sampling::default());
        assert_eq!(greedy.sample(&[f32::NAN, 1.0, 3.0, 3.0]).unwrap(), TokenId(2));
        assert_eq!(greedy.sample(&[f32::NAN; 3]), Err(NoLogits));
    }

    #[test]
    fn draws_follow_the_softmax() {
        let logits = [0.0f32, (2.0f32).ln(), (5.0f32).ln()];
        let shares = shares(&mut sampler(|s| s.seed = 7), &logits, 40_000);
        for (share, expected) in shares.iter().zip([1.0 / 8.0, 2.0 / 8.0, 5.0 / 8.0]) {
            assert!((share - expected).abs() < 0.01, "{share} is not near {expected}");
        }
    }

    #[test]
    fn cuts_leave_what_they_say() {
        let logits: Vec<f32> = [0.5f32, 0.25, 0.125, 0.125].iter().map(|p| p.ln()).collect();
        let support = |sampler: &mut Sampler| -> Vec<bool> {
            shares(sampler, &logits, 2_000)
                .iter()
                .map(|&share| share > 0.0)
                .collect()
        };
        assert_eq!(support(&mut sampler(|s| s.top_k = 2)), [true, true, false, false]);
        assert_eq!(
            support(&mut sampler(|s| s.top_p = 0.7)),
            [true, true, false, false]
        );
        assert_eq!(
            support(&mut sampler(|s| s.top_p = 0.45)),
            [true, false, false, false]
        );
        assert_eq!(
            support(&mut sampler(|s| s.min_p = 0.4)),
            [true, true, false, false]
        );
        assert_eq!(support(&mut sampler(|_| ())), [true; 4]);
    }

    #[test]
    fn repetition_penalty_divides_positive_and_multiplies_negative_logits() {
        let mut greedy = Sampler::new(Sampling {
            repetition_penalty: 2.0,
            ..Sampling::default()
        });
        greedy.observe(TokenId(0));
        assert_eq!(greedy.sample(&[1.9, 1.0]).unwrap(), TokenId(1));
        assert_eq!(greedy.sample(&[2.1, 1.0]).unwrap(), TokenId(0));
        assert_eq!(greedy.sample(&[-0.6, -1.0]).unwrap(), TokenId(1));
    }

    #[test]
    fn an_infinite_logit_wins() {
        assert_eq!(
            sampler(|_| ()).sample(&[0.0, f32::INFINITY, 1.0]).unwrap(),
            TokenId(1)
        );
    }

    proptest! {
        #[test]
        fn same_seed_same_draws(seed: u64, logits in prop::collection::vec(-5.0f32..5.0, 2..50)) {
            let (mut a, mut b) = (sampler(|s| s.seed = seed), sampler(|s| s.seed = seed));
            for _ in 0..20 {
                prop_assert_eq!(a.sample(&logits).unwrap(), b.sample(&logits).unwrap());
            }
        }

        #[test]
        fn any_settings_choose_a_token_of_the_vocabulary(
            logits in prop::collection::vec(prop::num::f32::ANY, 1..40),
            temperature in 0.0f32..3.0, top_k in 0usize..50, top_p in 0.0f32..1.2, min_p in 0.0f32..1.0,
        ) {
            let mut s = sampler(|s| {
                (s.temperature, s.top_k, s.top_p, s.min_p) = (temperature, top_k, top_p, min_p);
            });
            let usable = logits.iter().any(|l| *l > f32::NEG_INFINITY);
            match s.sample(&logits) {
                Ok(id) => prop_assert!(logits[id.0 as usize] > f32::NEG_INFINITY),
                Err(NoLogits) => prop_assert!(!usable),
            }
        }
    }
}
