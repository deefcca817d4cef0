//! The statistics of the service.

use std::time::Duration;

/// A snapshot of the service's statistics; [`crate::Service::watch_stats`] reports changes.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Stats {
    /// Accepted jobs that wait for a slot.
    pub queued: usize,
    /// Jobs that have a slot.
    pub running: usize,
    /// The maximum number of running jobs.
    pub slots: usize,
    /// New tokens per second of one answer's decoding, averaged over recent answers; 0 until there is one.
    pub tokens_per_s: f64,
    /// The time from acceptance to the first token, averaged over recent answers; zero until there is one.
    pub first_token: Duration,
    /// Jobs that ended with an answer, complete or cut short.
    pub served: u64,
    /// Jobs that were accepted and ended with an error.
    pub failed: u64,
    /// Requests that were not accepted.
    pub refused: u64,
    /// Outcomes that were not taken off the reply channel yet.
    pub outcomes_waiting: usize,
    /// Messages that are stored until the broker acknowledges them.
    pub undelivered: usize,
    /// Refusals and dead letters that were dropped, because too many waited for the broker.
    pub replies_dropped: u64,
}
