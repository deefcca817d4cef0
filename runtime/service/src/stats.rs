//! How the service is doing.

use std::time::Duration;

/// A snapshot; [`crate::Service::watch_stats`] tells of changes.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Stats {
    /// Accepted jobs that wait for a slot.
    pub queued: usize,
    /// Jobs that have a slot.
    pub running: usize,
    /// How many jobs can run at once.
    pub slots: usize,
    /// New tokens per second of one answer's decoding, averaged over recent answers; 0 until there is one.
    pub tokens_per_s: f64,
    /// From acceptance to the first token, averaged over recent answers; zero until there is one.
    pub first_token: Duration,
    /// Jobs that ended with an answer, complete or cut short.
    pub served: u64,
    /// Jobs that were accepted and ended with an error.
    pub failed: u64,
    /// Requests that were not accepted.
    pub refused: u64,
    /// Outcomes that nobody has taken off the reply channel yet.
    pub outcomes_waiting: usize,
    /// Messages that are stored until the broker acknowledges them.
    pub undelivered: usize,
    /// Refusals and dead letters that were dropped: more waited for the broker than there is room for.
    pub replies_dropped: u64,
}
