//! How long to wait before the next attempt.

use std::time::Duration;

use super::quarantine::ReconnectDelay;
use super::takeover::SHORT_CONNECTION;

const INITIAL_BACKOFF: Duration = Duration::from_millis(250);
const MAX_BACKOFF: Duration = Duration::from_secs(30);
/// Credentials don't mend themselves, and brokers lock out who tries too often.
const REFUSED_BACKOFF: Duration = Duration::from_mins(1);
/// Where the path is not to blame. Enough for a broker not to be rushed.
pub(crate) const QUICK_RECONNECT_DELAY: Duration = Duration::from_millis(50);

/// Doubles the wait with every failure. Jitter keeps a fleet from coming back all at once.
#[derive(Debug, Default)]
pub(crate) struct Backoff {
    failures: u32,
}

impl Backoff {
    /// The wait after a connection that lived for `lived`, or an attempt that failed (`None`).
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

    /// As [`Backoff::after`], of a connection of which the quarantine says how soon the next one should be made.
    pub(crate) fn after_loss(&mut self, lived: Option<Duration>, wait: ReconnectDelay) -> Duration {
        match wait {
            ReconnectDelay::Short => Self::quick(),
            ReconnectDelay::Backoff => self.after(lived),
        }
    }

    /// The wait after a connection that a message is likely to have ended.
    fn quick() -> Duration {
        jittered(QUICK_RECONNECT_DELAY)
    }

    /// The wait after the broker refused us.
    pub(crate) fn refused() -> Duration {
        jittered(REFUSED_BACKOFF)
    }

    pub(crate) fn failures(&self) -> u32 {
        self.failures
    }
}

/// Between half of `wait` and all of it.
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
