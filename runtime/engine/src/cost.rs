//! The measured cost of a run by the number of tokens that it computes.

use std::time::Duration;

/// The most tokens of a run with a draft: wider ones did not pay on any machine that was measured.
pub(crate) const MAX_RUN_TOKENS: usize = 32;
/// The assumed cost of each further token before it was measured, in runs of one token.
const ASSUMED_TOKEN_COST: f64 = 0.2;

/// Costs as multiples of a run of one token. They depend on the machine (a processor pays for arithmetic from the
/// second or fifth token on, a graphics card hardly at all), so they are measured as runs go by.
#[derive(Debug)]
pub(crate) struct RunCost {
    /// Seconds of a run of one token.
    one: Option<f64>,
    /// The costs by tokens of a run; the first two are 1.
    times: [f64; MAX_RUN_TOKENS + 1],
}

impl Default for RunCost {
    fn default() -> Self {
        Self {
            one: None,
            times: std::array::from_fn(assumed),
        }
    }
}

impl RunCost {
    /// Records the time of a run of `tokens`.
    pub(crate) fn record(&mut self, tokens: usize, took: Duration) {
        let took = took.as_secs_f64();
        if took <= 0.0 || tokens == 0 || tokens > MAX_RUN_TOKENS {
            return;
        }
        if tokens == 1 {
            self.one = Some(self.one.map_or(took, |one| 0.8 * one + 0.2 * took));
            // Old measurements, perhaps of a bad moment, fade within some hundred runs.
            for (tokens, times) in self.times.iter_mut().enumerate() {
                *times += 0.01 * (assumed(tokens) - *times);
            }
            return;
        }
        let Some(one) = self.one else { return };
        let times = &mut self.times[tokens];
        *times = 0.8 * *times + 0.2 * (took / one).clamp(1.0, assumed(tokens) * 4.0);
        let times = *times;
        // More tokens never cost less.
        for narrower in &mut self.times[2..tokens] {
            *narrower = narrower.min(times);
        }
        for wider in &mut self.times[tokens + 1..] {
            *wider = wider.max(times);
        }
    }

    /// The cost of a run of `tokens`; `None` beyond [`MAX_RUN_TOKENS`].
    pub(crate) fn of(&self, tokens: usize) -> Option<f64> {
        self.times.get(tokens).copied()
    }
}

#[expect(clippy::cast_precision_loss, reason = "at most MAX_RUN_TOKENS")]
fn assumed(tokens: usize) -> f64 {
    1.0 + ASSUMED_TOKEN_COST * tokens.saturating_sub(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn costs_are_measured_and_forgotten() {
        let ms = Duration::from_millis;
        let mut cost = RunCost::default();
        assert!(cost.of(5).is_some_and(|times| (times - 1.8).abs() < 1e-9));
        // Without a run of one token nothing can be compared.
        cost.record(5, ms(500));
        assert!(cost.of(5).is_some_and(|times| times < 2.0));
        for _ in 0..50 {
            cost.record(1, ms(100));
            cost.record(4, ms(102));
        }
        assert!(cost.of(4).is_some_and(|times| times < 1.1));
        assert!(cost.of(2).is_some_and(|times| times < 1.1));
        assert!(cost.of(8) > cost.of(4));
        for _ in 0..1000 {
            cost.record(1, ms(100));
        }
        assert!(cost.of(4).is_some_and(|times| (times - 1.6).abs() < 0.01));
        assert_eq!(cost.of(MAX_RUN_TOKENS + 1), None);
        cost.record(1, Duration::ZERO);
        cost.record(MAX_RUN_TOKENS + 1, ms(1));
    }
}
