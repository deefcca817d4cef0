//! An estimate of the time that a prompt takes, from the measured speed of prefill.
//!
//! Requests are refused by it, so it is a lower bound: by the best speed that was measured on prompts that are not longer. In a
//! longer one the tokens take more time, as each is computed over all before it.

use std::time::Duration;

use crate::request::Summary;

/// The fewest computed tokens of a measured prefill: in fewer, the time that each run takes anyway outweighs the tokens'.
const MIN_MEASURED_TOKENS: usize = 256;
/// The most measurements that are kept.
const MAX_MEASUREMENTS: usize = 64;

/// The measured speed of prefill.
#[derive(Debug, Default)]
pub struct PrefillEstimate {
    /// In the order of their tokens, each faster than those before it: others say nothing about any prompt.
    measurements: Vec<Measurement>,
}

#[derive(Debug)]
struct Measurement {
    /// The tokens of the prompt, up to the end of what was computed.
    tokens: usize,
    /// Tokens per second.
    speed: f64,
}

impl PrefillEstimate {
    /// Adds the runs of a finished answer's prompt, also where they were cut short. Returns the number of tokens up to which
    /// they computed it; `None` where they were too few to tell the speed.
    pub fn observe(&mut self, summary: &Summary) -> Option<usize> {
        let runs = summary.prefill_runs;
        let seconds = runs.time.as_secs_f64();
        if runs.tokens < MIN_MEASURED_TOKENS || seconds <= 0.0 {
            return None;
        }
        let (tokens, speed) = (runs.end, number(runs.tokens) / seconds);
        if self.speed_up_to(tokens).is_some_and(|known| known >= speed) {
            return Some(tokens);
        }
        self.measurements
            .retain(|other| other.tokens < tokens || other.speed > speed);
        let at = self.measurements.partition_point(|other| other.tokens < tokens);
        self.measurements.insert(at, Measurement { tokens, speed });
        if self.measurements.len() > MAX_MEASUREMENTS {
            // Nothing is estimated any more for the shortest prompts, which take the least time.
            self.measurements.remove(0);
        }
        Some(tokens)
    }

    /// The least time for `new_tokens` of a prompt of `prompt_tokens`; `None` where nothing was measured on prompts of that
    /// length or less.
    pub fn time(&self, prompt_tokens: usize, new_tokens: usize) -> Option<Duration> {
        let speed = self.speed_up_to(prompt_tokens)?;
        Duration::try_from_secs_f64(number(new_tokens) / speed).ok()
    }

    /// The best speed that was measured on prompts of at most `tokens`.
    fn speed_up_to(&self, tokens: usize) -> Option<f64> {
        let known = self.measurements.partition_point(|known| known.tokens <= tokens);
        let best = self.measurements.get(known.checked_sub(1)?)?;
        Some(best.speed)
    }
}

/// A count of tokens. They are far below 2^32; beyond it an estimate may as well saturate.
fn number(tokens: usize) -> f64 {
    f64::from(u32::try_from(tokens).unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::*;
    use crate::request::{Finish, PrefillRuns};

    fn summary(end: usize, tokens: usize, ms: u64) -> Summary {
        Summary {
            finish: Finish::Stop,
            tokens: Vec::new(),
            prompt_tokens: end,
            image_tokens: 0,
            cached_tokens: end - tokens,
            draft_tokens: 0,
            accepted_draft_tokens: 0,
            queued: Duration::ZERO,
            // With what ran meanwhile.
            prefill: Duration::from_hours(1),
            prefill_runs: PrefillRuns {
                tokens,
                end,
                time: Duration::from_millis(ms),
            },
            decode: Duration::ZERO,
        }
    }

    fn seconds(estimate: &PrefillEstimate, tokens: usize) -> Option<u64> {
        let time = estimate.time(tokens, tokens);
        // A float may lie just below.
        time.map(|time| (time + Duration::from_millis(1)).as_secs())
    }

    #[test]
    fn nothing_is_estimated_before_it_was_measured_on_prompts_of_that_length_or_less() {
        let mut estimate = PrefillEstimate::default();
        // Short, or mostly cached: neither tells the speed.
        estimate.observe(&summary(100, 100, 10_000));
        estimate.observe(&summary(2000, 100, 10_000));
        assert_eq!(seconds(&estimate, 10_000), None);
        estimate.observe(&summary(2000, 1000, 10_000));
        assert_eq!(seconds(&estimate, 10_000), Some(100));
        assert_eq!(seconds(&estimate, 2000), Some(20));
        assert_eq!(seconds(&estimate, 1999), None);
        // A slower one says nothing about others: it may have been another moment.
        estimate.observe(&summary(2000, 1000, 20_000));
        estimate.observe(&summary(9000, 9000, 180_000));
        assert_eq!(seconds(&estimate, 10_000), Some(100));
        estimate.observe(&summary(9000, 9000, 45_000));
        assert_eq!(
            (seconds(&estimate, 10_000), seconds(&estimate, 2000)),
            (Some(50), Some(20))
        );
    }

    proptest! {
        #[test]
        fn the_best_speed_on_prompts_that_are_not_longer_counts(
            measured in prop::collection::vec((256usize..400, 1u32..50), 0..60), asked in 256usize..450,
        ) {
            let mut estimate = PrefillEstimate::default();
            for (tokens, ms) in &measured {
                estimate.observe(&summary(*tokens, *tokens, u64::from(*ms)));
            }
            let not_longer = measured.iter().filter(|(tokens, _)| *tokens <= asked);
            let best = not_longer.map(|(tokens, ms)| number(*tokens) * 1000.0 / f64::from(*ms)).fold(0.0, f64::max);
            let time = estimate.time(asked, 100).map(|time| time.as_secs_f64());
            let expected = (best > 0.0).then(|| 100.0 / best);
            prop_assert!(match (time, expected) {
                (Some(time), Some(expected)) => (time - expected).abs() < 1e-6,
                (time, expected) => time == expected,
            }, "{time:?}, expected {expected:?}");
        }
    }
}
