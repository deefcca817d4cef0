//! The numbers of jobs and refusals, and the throughput of answers.

use std::time::Duration;

use crate::jobs::throughput::Throughput;
use crate::stats::Stats;
use phi_edge_api::Answer;

/// The counters of jobs since the start of the process, and the throughput of recent answers.
#[derive(Debug, Default)]
pub(super) struct JobStats {
    served: u64,
    failed: u64,
    refused: u64,
    throughput: Throughput,
}

impl JobStats {
    /// Counts a job that ended with an answer.
    pub(super) fn record_answer(&mut self, answer: &Answer) {
        self.served += 1;
        self.throughput.observe(answer);
    }

    /// Counts an accepted job that ended with an error.
    pub(super) fn record_failure(&mut self) {
        self.failed += 1;
    }

    /// Counts a request that was not accepted.
    pub(super) fn record_refusal(&mut self) {
        self.refused += 1;
    }

    /// The time after which a refused client may expect room in a queue of `queued` jobs, `max` at most.
    pub(super) fn retry_after(&self, queued: usize, slots: usize, max: Duration) -> Duration {
        self.throughput.retry_after(queued, slots, max)
    }

    /// A snapshot that holds the counters and the throughput, and defaults elsewhere.
    pub(super) fn snapshot(&self) -> Stats {
        Stats {
            tokens_per_s: self.throughput.tokens_per_s(),
            first_token: self.throughput.first_token(),
            served: self.served,
            failed: self.failed,
            refused: self.refused,
            ..Stats::default()
        }
    }
}
