//! The heartbeat of the task that polls the network, for the watchdog.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval};

/// The time between two heartbeats.
const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(1);

/// The heartbeat of a task, and whether the broker has answered the subscription.
#[derive(Debug, Default)]
pub(crate) struct Heartbeat {
    beats: AtomicU64,
    subscribed: watch::Sender<bool>,
}

impl Heartbeat {
    /// Drives `work` and beats beside it in the same task: work that blocks the task stops the heartbeat, work that waits does
    /// not.
    pub(crate) async fn during<F: Future>(&self, work: F) -> F::Output {
        let mut work = pin!(work);
        let mut ticker = interval(HEARTBEAT_INTERVAL);
        ticker.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                output = &mut work => return output,
                _ = ticker.tick() => {
                    self.beats.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
    }

    /// Notes that the broker has answered the subscription, if only to refuse it.
    pub(crate) fn subscribed(&self) {
        self.subscribed.send_replace(true);
    }
}

/// A reader of the link's heartbeat that does not hold the link.
#[derive(Debug, Clone)]
pub struct LinkLiveness {
    heartbeat: Arc<Heartbeat>,
    short_connections: watch::Receiver<u32>,
}

impl LinkLiveness {
    pub(crate) fn new(heartbeat: Arc<Heartbeat>, short_connections: watch::Receiver<u32>) -> Self {
        Self {
            heartbeat,
            short_connections,
        }
    }

    /// Returns a number that changes every second as long as the task that polls the network responds.
    pub fn beats(&self) -> u64 {
        self.heartbeat.beats.load(Ordering::Relaxed)
    }

    /// Becomes true once the broker has answered the subscription for the first time.
    pub fn subscribed(&self) -> watch::Receiver<bool> {
        self.heartbeat.subscribed.subscribe()
    }

    /// The number of connections in a row that ended within ten seconds; 0 once one has lived longer.
    pub fn short_connections(&self) -> watch::Receiver<u32> {
        self.short_connections.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn waiting_gives_signs_of_life_and_no_task_gives_none() {
        let heartbeat = Heartbeat::default();
        let beats = || heartbeat.beats.load(Ordering::Relaxed);
        heartbeat.during(async {}).await;
        assert_eq!(beats(), 0);
        // The first beat is due at once, and work that waits lets it happen.
        let sees_one = async {
            while beats() == 0 {
                tokio::task::yield_now().await;
            }
        };
        heartbeat.during(sees_one).await;
        let seen = beats();
        tokio::task::yield_now().await;
        assert_eq!(beats(), seen);
    }
}
