//! The keep-alive monitor: notices a broker that does not answer while the node is sending.
//!
//! The client library pings only after a time in which nothing was sent either, and waits without a limit for bytes to leave.
//! So it would not notice the loss of the broker while the node streams. The broker must answer what is published with QoS 1:
//! a missing answer tells. Stats are published every minute at least, so an answer is due often enough.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, Interval, MissedTickBehavior, interval};

use super::counters::Counters;

/// The time between two checks.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// The monitor of how long the broker has owed an answer and sent nothing.
pub(crate) struct KeepAliveMonitor {
    counters: Arc<Counters>,
    ticker: Interval,
    /// The longest silence while an answer is due.
    limit: Duration,
    since: Option<Instant>,
}

impl KeepAliveMonitor {
    /// The limit is one and a half times the keep-alive, as for brokers (MQTT 5, section 3.1.2.10).
    pub(crate) fn new(counters: Arc<Counters>, keep_alive: Duration) -> Self {
        let mut ticker = interval(CHECK_INTERVAL);
        ticker.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self {
            counters,
            ticker,
            limit: keep_alive + keep_alive / 2,
            since: None,
        }
    }

    /// Resets the silence: the broker has sent something, or the connection is a new one.
    pub(crate) fn reset(&mut self) {
        self.since = None;
    }

    /// Resolves when the silence has lasted too long. Cancel safe.
    pub(crate) async fn expired(&mut self) {
        loop {
            let now = self.ticker.tick().await;
            if self.counters.is_answer_due() {
                let since = *self.since.get_or_insert(now);
                if now.saturating_duration_since(since) >= self.limit {
                    self.since = None;
                    return;
                }
            } else {
                self.since = None;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::timeout;

    use super::*;

    const KEEP_ALIVE: Duration = Duration::from_secs(10);

    #[tokio::test(start_paused = true)]
    async fn only_an_answer_that_is_due_and_does_not_come_is_missed() {
        let counters = Arc::new(Counters::default());
        let mut silence = KeepAliveMonitor::new(Arc::clone(&counters), KEEP_ALIVE);
        let long = KEEP_ALIVE * 10;
        assert!(timeout(long, silence.expired()).await.is_err(), "nothing is due");
        counters.answers_due(1);
        for _ in 0..10 {
            assert!(
                timeout(KEEP_ALIVE, silence.expired()).await.is_err(),
                "it answers"
            );
            silence.reset();
        }
        assert!(
            timeout(KEEP_ALIVE * 2, silence.expired()).await.is_ok(),
            "it does not"
        );
    }
}
