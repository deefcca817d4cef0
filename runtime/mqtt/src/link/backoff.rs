//! The backoff between attempts to connect.

use std::time::Duration;

use super::quarantine::ReconnectDelay;
use super::takeover::SHORT_CONNECTION;

/// The wait after the first failure.
const INITIAL_BACKOFF: Duration = Duration::from_millis(250);
/// The longest wait after failures.
const MAX_BACKOFF: Duration = Duration::from_secs(30);
/// The wait after a refusal: credentials seldom become right by themselves, and brokers lock out clients that try often.
const REFUSED_BACKOFF: Duration = Duration::from_mins(1);
/// The wait where the path is not to blame, long enough to spare the broker.
pub(crate) const QUICK_RECONNECT_DELAY: Duration = Duration::from_millis(50);

/// An exponential backoff with jitter, which keeps a fleet from reconnecting at the same moment.
#[derive(Debug, Default)]
pub(crate) struct Backoff {
    failures: u32,
}

impl Backoff {
    /// Returns the wait after a connection that lived for `lived`, or after a failed attempt (`None`).
    pub(crate) fn after(&mut self, lived: Option<Duration>) -> Duration {
        if lived.is_some_and(|lived| lived >= SHORT_CONNECTION) {
            self.failures = 0;
        }
        let wait = INITIAL_BACKOFF
            .saturating_mul(1 << self.failures.min(16))
            .min(MAX_BACKOFF);
        self.failures += 1;
        jittered(wait)
    }

    /// As [`Backoff::after`], for a connection of which the quarantine tells how soon to reconnect.
    pub(crate) fn after_loss(&mut self, lived: Option<Duration>, wait: ReconnectDelay) -> Duration {
        match wait {
            ReconnectDelay::Short => Self::quick(),
            ReconnectDelay::Backoff => self.after(lived),
        }
    }

    /// Returns the wait after a connection that a message is likely to have ended.
    fn quick() -> Duration {
        jittered(QUICK_RECONNECT_DELAY)
    }

    /// Returns the wait after a refusal.
    pub(crate) fn refused() -> Duration {
        jittered(REFUSED_BACKOFF)
    }

    /// Returns the number of failures in a row.
    pub(crate) fn failures(&self) -> u32 {
        self.failures
    }
}

/// Returns a random time between half of `wait` and `wait`.
fn jittered(wait: Duration) -> Duration {
    let half = wait / 2;
    half + half.mul_f64(rand::random())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_a_bound_and_start_over_after_a_good_connection() {
        let mut backoff = Backoff::default();
        let mut bound = INITIAL_BACKOFF;
        for _ in 0..40 {
            let wait = backoff.after(None);
            assert!(wait >= bound / 2 && wait <= bound, "{wait:?} of {bound:?}");
            bound = (bound * 2).min(MAX_BACKOFF);
        }
        assert!(backoff.after(Some(Duration::from_secs(1))) >= MAX_BACKOFF / 2);
        assert!(backoff.after(Some(Duration::from_mins(1))) <= INITIAL_BACKOFF);
    }

    #[test]
    fn two_nodes_wait_differently() {
        let waits: std::collections::HashSet<_> = (0..20).map(|_| Backoff::default().after(None)).collect();
        assert!(waits.len() > 10);
    }
}
