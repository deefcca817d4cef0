//! The retry policy of a pull.

use std::time::Duration;

/// Attempts, waits and the size of pieces.
#[derive(Debug, Clone)]
pub struct RetryPolicy {
    /// Attempts without progress before it gives up; each byte beyond the most ever reached resets the count.
    pub max_attempts: u32,
    /// The wait after the first failure; it doubles with each further one.
    pub initial_backoff: Duration,
    /// The longest wait without a request of the server.
    pub max_backoff: Duration,
    /// The longest wait that a server may ask for by `Retry-After`.
    pub max_retry_after: Duration,
    /// The time without data after which a connection is closed.
    pub stall_timeout: Duration,
    /// The bytes of one request.
    pub chunk_bytes: u64,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            max_attempts: 8,
            initial_backoff: Duration::from_millis(500),
            max_backoff: Duration::from_secs(30),
            max_retry_after: Duration::from_mins(10),
            stall_timeout: Duration::from_mins(1),
            chunk_bytes: 8 << 20,
        }
    }
}

impl RetryPolicy {
    /// The wait after `failures` in a row: doubled each time, at least what the server asks for. A random half of it
    /// is left out, so that many nodes that failed together do not come back together.
    pub(crate) fn backoff(&self, failures: u32, asked: Option<Duration>) -> Duration {
        let full = self
            .initial_backoff
            .saturating_mul(1_u32 << failures.saturating_sub(1).min(16))
            .min(self.max_backoff);
        let share = rand::random_range(0..512);
        let jittered = full.saturating_mul(512 + share) / 1024;
        jittered.max(asked.unwrap_or_default().min(self.max_retry_after))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_within_bounds_and_obey_the_server() {
        let policy = RetryPolicy::default();
        for failures in 1..40 {
            let wait = policy.backoff(failures, None);
            assert!(
                wait >= policy.initial_backoff / 2 && wait <= policy.max_backoff,
                "{wait:?}"
            );
        }
        let asked = Duration::from_secs(90);
        assert_eq!(policy.backoff(1, Some(asked)), asked);
        assert_eq!(
            policy.backoff(1, Some(Duration::from_hours(9))),
            policy.max_retry_after
        );
    }
}
