//! How long to go on trying, and how long to wait in between.

use std::time::Duration;

/// How patient a pull is, and in what pieces it asks.
#[derive(Debug, Clone)]
pub struct Patience {
    /// Tries without progress before it gives up; each byte beyond what was ever reached starts the count anew.
    pub tries: u32,
    /// The wait after the first failure; it doubles with each further one.
    pub pause: Duration,
    /// The longest wait that is chosen here.
    pub longest: Duration,
    /// The longest wait that a server may ask for by `Retry-After`.
    pub longest_asked: Duration,
    /// A connection that gives nothing for this long is given up.
    pub stall: Duration,
    /// Bytes asked for at a time.
    pub chunk: u64,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            tries: 8,
            pause: Duration::from_millis(500),
            longest: Duration::from_secs(30),
            longest_asked: Duration::from_mins(10),
            stall: Duration::from_mins(1),
            chunk: 8 << 20,
        }
    }
}

impl Patience {
    /// The wait after `failures` in a row: doubled each time, at least what the server asks for. A random half of it
    /// is left out, so that many nodes that failed together do not come back together.
    pub(crate) fn wait(&self, failures: u32, asked: Option<Duration>) -> Duration {
        let full = self
            .pause
            .saturating_mul(1_u32 << failures.saturating_sub(1).min(16))
            .min(self.longest);
        let share = rand::random_range(0..512);
        let jittered = full.saturating_mul(512 + share) / 1024;
        jittered.max(asked.unwrap_or_default().min(self.longest_asked))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_within_bounds_and_obey_the_server() {
        let patience = Patience::default();
        for failures in 1..40 {
            let wait = patience.wait(failures, None);
            assert!(wait >= patience.pause / 2 && wait <= patience.longest, "{wait:?}");
        }
        let asked = Duration::from_secs(90);
        assert_eq!(patience.wait(1, Some(asked)), asked);
        assert_eq!(
            patience.wait(1, Some(Duration::from_hours(9))),
            patience.longest_asked
        );
    }
}
