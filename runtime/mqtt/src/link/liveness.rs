//! Signs of life of the link, for whoever watches over it.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval};

use super::counters::Counters;

/// Between two signs of life.
const EACH: Duration = Duration::from_secs(1);

#[derive(Debug, Default)]
pub(crate) struct Vitals {
    ticks: AtomicU64,
    subscribed: watch::Sender<bool>,
}

impl Vitals {
    /// Does `work` and gives a sign of life with it, in the same task: if the work holds the task up, no sign comes; if it
    /// only waits, it does.
    pub(crate) async fn during<F: Future>(&self, work: F) -> F::Output {
        let mut work = pin!(work);
        let mut ticks = interval(EACH);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                output = &mut work => return output,
                _ = ticks.tick() => {
                    self.ticks.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
    }

    /// The broker has answered the subscription, if only to refuse it.
    pub(crate) fn subscribed(&self) {
        self.subscribed.send_replace(true);
    }
}

/// Reads the signs of life without holding the link.
#[derive(Debug, Clone)]
pub struct LinkVitals(pub(crate) Arc<Counters>);

impl LinkVitals {
    /// A number that changes every second as long as the task that polls the network responds.
    pub fn ticks(&self) -> u64 {
        self.0.vitals.ticks.load(Ordering::Relaxed)
    }

    /// Becomes true once the broker has answered the subscription for the first time.
    pub fn subscribed(&self) -> watch::Receiver<bool> {
        self.0.vitals.subscribed.subscribe()
    }

    /// The number of connections in a row that ended within ten seconds; 0 once one has lived longer.
    pub fn short_connections(&self) -> watch::Receiver<u32> {
        self.0.short_connections.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn waiting_gives_signs_of_life_and_no_task_gives_none() {
        let vitals = Vitals::default();
        let ticks = || vitals.ticks.load(Ordering::Relaxed);
        vitals.during(async {}).await;
        assert_eq!(ticks(), 0);
        // Work that waits lets the first sign of life out, which is due at once; that it saw one ends it.
        let sees_one = async {
            while ticks() == 0 {
                tokio::task::yield_now().await;
            }
        };
        vitals.during(sees_one).await;
        let seen = ticks();
        tokio::task::yield_now().await;
        assert_eq!(ticks(), seen);
    }
}
