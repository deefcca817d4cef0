//! Measured run times, and the size of a prefill chunk beside running answers that follows from them.

use std::time::Duration;

/// The time of a chunk beside running answers, in decode steps.
const CHUNK_DECODE_STEPS: f64 = 4.0;
/// The fewest tokens of a chunk: smaller ones waste the weights that each run reads.
const MIN_CHUNK_TOKENS: usize = 32;

/// Measured run times, exponentially smoothed.
#[derive(Debug, Default)]
pub(crate) struct RunTimes {
    /// Seconds of a decode step.
    decode: Option<f64>,
    /// Seconds of a prefill token.
    prefill: Option<f64>,
}

impl RunTimes {
    /// Records the time of a decode step.
    pub(crate) fn record_decode(&mut self, took: Duration) {
        smooth(&mut self.decode, took.as_secs_f64());
    }

    /// Records the time of a prefill run of `tokens`.
    #[expect(clippy::cast_precision_loss, reason = "token counts are small")]
    pub(crate) fn record_prefill(&mut self, tokens: usize, took: Duration) {
        // Short chunks take as long as a decode step and say little about the next chunk.
        if tokens >= MIN_CHUNK_TOKENS / 2 {
            smooth(&mut self.prefill, took.as_secs_f64() / tokens as f64);
        }
    }

    /// The number of tokens of a chunk that runs between two decode steps; at most `most`.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a positive number of tokens"
    )]
    pub(crate) fn chunk_size(&self, most: usize) -> usize {
        let wanted = match (self.decode, self.prefill) {
            (Some(decode), Some(prefill)) if prefill > 0.0 => {
                (CHUNK_DECODE_STEPS * decode / prefill) as usize
            }
            // Before anything was measured.
            _ => 2 * MIN_CHUNK_TOKENS,
        };
        wanted.max(MIN_CHUNK_TOKENS).min(most.max(1))
    }
}

fn smooth(mean: &mut Option<f64>, value: f64) {
    *mean = Some(mean.map_or(value, |mean| 0.7 * mean + 0.3 * value));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_follow_the_measured_times() {
        let mut times = RunTimes::default();
        assert_eq!(times.chunk_size(512), 64);
        times.record_decode(Duration::from_millis(60));
        times.record_prefill(512, Duration::from_millis(5120));
        assert_eq!(times.chunk_size(512), 32);
        let mut quick = RunTimes::default();
        quick.record_decode(Duration::from_millis(50));
        quick.record_prefill(100, Duration::from_millis(100));
        assert_eq!(quick.chunk_size(512), 200);
        assert_eq!(quick.chunk_size(100), 100);
    }
}
