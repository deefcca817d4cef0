//! The task of the rules: ends windows when they are due, and has the model summarise what they hold.

mod pictures;
mod summary;

use std::sync::Arc;
use std::time::Duration;

use phi_edge_rules::engine::PendingSummary;
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::Shared;

pub(super) use summary::summarise;

/// The maximum time between two readings of the clock, which may have been set.
const CLOCK_CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// Runs until it is aborted; at most `at_once` events are summarised at the same time.
pub(super) async fn run(shared: Arc<Shared>, at_once: usize) {
    let mut working: JoinSet<()> = JoinSet::new();
    loop {
        let due = shared.tick_rules();
        shared.publish_facts();
        while working.len() < at_once {
            let Some(pending) = shared.rule_engine().take_pending_summary() else {
                break;
            };
            working.spawn(summarise_and_publish(Arc::clone(&shared), pending));
        }
        tokio::select! {
            () = sleep(due.unwrap_or(CLOCK_CHECK_INTERVAL).min(CLOCK_CHECK_INTERVAL)) => {}
            () = shared.rules_wake.notified() => {}
            Some(ended) = working.join_next() => {
                if let Err(error) = ended && error.is_panic() {
                    tracing::error!(%error, "summarising an event failed");
                }
            }
        }
    }
}

/// Summarises an event and publishes it.
async fn summarise_and_publish(shared: Arc<Shared>, pending: PendingSummary) {
    let (published, jobs) = summarise(&shared, pending).await;
    shared.publish_event(published, &jobs);
}
