//! Finds out that nobody answers while something is being sent.
//!
//! The client library asks for a sign of life only after a time in which nothing was sent either, and waits for as long as
//! the system likes for bytes to leave. So a broker that has vanished without a word would not be missed by a node that
//! streams. What we publish with QoS 1 must be answered: an answer that does not come tells. As stats are published every
//! minute at least, there is always something to be answered.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, Interval, MissedTickBehavior, interval};

use super::counters::Counters;

/// Between two looks.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// How long the broker has owed us an answer and said nothing.
pub(crate) struct KeepAliveMonitor {
    counters: Arc<Counters>,
    ticker: Interval,
    /// The most of it.
    limit: Duration,
    since: Option<Instant>,
}

impl KeepAliveMonitor {
    /// One and a half times the keep-alive, as brokers have it with their clients (MQTT 5, section 3.1.2.10).
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

    /// The broker said something, or the connection is another.
    pub(crate) fn reset(&mut self) {
        self.since = None;
    }

    /// Ends when the silence is too long. Nothing is lost if it is not waited for to the end.
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
