//! The throughput of recent jobs.

use std::time::Duration;

use phi_edge_api::Answer;

/// The assumed time of a job before one was measured.
const DEFAULT_JOB_TIME: Duration = Duration::from_secs(5);

/// The weight of the newest measurement: about the last ten jobs count.
const NEWEST_WEIGHT: f64 = 0.2;

/// Exponentially weighted means over finished jobs.
#[derive(Debug, Default)]
pub(crate) struct Throughput {
    job_seconds: Option<f64>,
    tokens_per_s: Option<f64>,
    first_token: Option<f64>,
}

impl Throughput {
    /// Adds the times of a finished answer.
    pub(crate) fn observe(&mut self, answer: &Answer) {
        blend(
            &mut self.job_seconds,
            (answer.prefill + answer.decode).as_secs_f64(),
        );
        blend(
            &mut self.first_token,
            (answer.queued + answer.prefill).as_secs_f64(),
        );
        // The first token comes out of the prefill: decoding made the others.
        let decoded = answer.completion_tokens.saturating_sub(1);
        let seconds = answer.decode.as_secs_f64();
        if decoded > 0 && seconds > 0.0 {
            // Token counts are far below 2^32; beyond it the mean may as well saturate.
            let decoded = f64::from(u32::try_from(decoded).unwrap_or(u32::MAX));
            blend(&mut self.tokens_per_s, decoded / seconds);
        }
    }

    pub(crate) fn tokens_per_s(&self) -> f64 {
        self.tokens_per_s.unwrap_or(0.0)
    }

    /// Returns the mean time from acceptance to the first token; zero until there was one.
    pub(crate) fn first_token(&self) -> Duration {
        let seconds = self.first_token.unwrap_or(0.0);
        Duration::try_from_secs_f64(seconds).unwrap_or_default()
    }

    /// Returns the time until a retry at a full queue: at least a second, at most `most`.
    ///
    /// It is the time in which half of the queue is worked off. By then there is room for several clients that come back
    /// at once, and there is still work, so that no slot is idle meanwhile.
    pub(crate) fn retry_after(&self, queued: usize, slots: usize, most: Duration) -> Duration {
        let job = self.job_seconds.map_or(DEFAULT_JOB_TIME, |s| {
            Duration::try_from_secs_f64(s).unwrap_or(most)
        });
        let jobs = u32::try_from(queued.div_ceil(2).div_ceil(slots.max(1))).unwrap_or(u32::MAX);
        let least = Duration::from_secs(1);
        job.saturating_mul(jobs.max(1)).clamp(least, most.max(least))
    }
}

fn blend(mean: &mut Option<f64>, new: f64) {
    *mean = Some(match *mean {
        Some(old) => old + NEWEST_WEIGHT * (new - old),
        None => new,
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use phi_edge_job::FinishReason;

    fn answer(tokens: usize, prefill: u64, decode: u64) -> Answer {
        Answer {
            reply_id: String::new(),
            text: String::new(),
            finish_reason: FinishReason::Stop,
            prompt_tokens: 1,
            completion_tokens: tokens,
            cached_tokens: 0,
            left_out_tokens: 0,
            image_tokens: 0,
            queued: Duration::ZERO,
            prefill: Duration::from_secs(prefill),
            decode: Duration::from_secs(decode),
            model: "".into(),
        }
    }

    #[test]
    fn the_wait_follows_what_jobs_took() {
        let mut throughput = Throughput::default();
        let most = Duration::from_mins(10);
        assert_eq!(throughput.retry_after(8, 1, most), DEFAULT_JOB_TIME * 4);
        throughput.observe(&answer(21, 1, 2));
        assert_eq!(throughput.retry_after(8, 1, most), Duration::from_secs(12));
        assert_eq!(throughput.retry_after(8, 2, most), Duration::from_secs(6));
        assert_eq!(throughput.retry_after(100_000, 1, most), most);
        assert!((throughput.tokens_per_s() - 10.0).abs() < 1e-9);
    }

    #[test]
    fn an_answer_of_no_tokens_says_nothing_about_speed() {
        let mut throughput = Throughput::default();
        throughput.observe(&answer(0, 0, 0));
        assert!(throughput.tokens_per_s().abs() < f64::EPSILON);
        assert_eq!(
            throughput.retry_after(0, 1, Duration::ZERO),
            Duration::from_secs(1)
        );
    }
}
