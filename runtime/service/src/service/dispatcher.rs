//! The dispatcher: the task between the ledger, the running jobs and the reply channel.

use std::collections::HashMap;
use std::sync::Arc;

use tokio::sync::mpsc::Permit;
use tokio::task::{Id, JoinError, JoinSet};
use tokio::time::Instant;

use crate::engine_thread::EngineHandle;
use crate::jobs::ledger::Closed;
use crate::jobs::runner::{Ended, Runner, until};
use crate::service::{HANDOVER_TIMEOUT, Shared};
use phi_edge_api::JobKey;
use phi_edge_api::Reply;
use phi_edge_job::ErrorCode;
use phi_edge_rules::Time;
use phi_edge_store::{Signals, wall_ms};

/// The task that starts jobs, takes their ends and sends outcomes to the reply channel.
pub(crate) struct Dispatcher {
    shared: Arc<Shared>,
    runner: Runner,
    running: JoinSet<Ended>,
    keys: HashMap<Id, JobKey>,
    /// The number of the store's last request for a refill that was served.
    refilled: u64,
}

impl Dispatcher {
    pub(crate) fn new(shared: Arc<Shared>, runner: Runner) -> Self {
        Self {
            shared,
            runner,
            running: JoinSet::new(),
            keys: HashMap::new(),
            refilled: 0,
        }
    }

    /// Runs until [`Shared::finish`] is true, then ends the engine.
    pub(crate) async fn run(mut self, engine: EngineHandle) {
        let replies = self.runner.replies.clone();
        let mut finish = self.shared.finish.subscribe();
        let mut lost = false;
        loop {
            self.start_jobs();
            let (expiry, has_outgoing) = {
                let ledger = self.shared.ledger();
                (ledger.next_expiry(), ledger.has_outgoing())
            };
            tokio::select! {
                () = self.shared.wake.notified() => {}
                () = store_news(self.shared.signals.as_deref()) => self.handle_store_news(),
                Some(ended) = self.running.join_next_with_id() => self.ended(ended),
                permit = replies.reserve(), if has_outgoing => self.hand_over(permit.ok()),
                () = until(expiry) => {}
                () = engine.lost(), if !lost => {
                    lost = true;
                    tracing::error!("the engine is lost; requests are refused from now on");
                    self.shared.ledger().close(Closed::EngineLost, Instant::now());
                    self.shared.engine_lost.send_replace(true);
                }
                _ = finish.wait_for(|finish| *finish) => break,
            }
        }
        self.running.shutdown().await;
        drop(self.runner);
        if !engine.stop(HANDOVER_TIMEOUT).await {
            tracing::warn!("the engine's thread did not end in time");
        }
    }

    /// Restores what the store has read meanwhile, and writes the complete state where the store requests it.
    fn handle_store_news(&mut self) {
        let Some(signals) = &self.shared.signals else {
            return;
        };
        let wanted = *signals.refill.borrow();
        self.shared.restore_if_any();
        if wanted != self.refilled {
            self.refilled = wanted;
            self.shared.write_all();
        }
    }

    /// Sends the oldest outcome. Without a permit the reply channel is closed, and all outcomes are discarded.
    fn hand_over(&self, permit: Option<Permit<'_, Reply>>) {
        let mut ledger = self.shared.ledger();
        if let Some(permit) = permit {
            if let Some(reply) = ledger.take_outgoing(Time(wall_ms())) {
                permit.send(reply);
            }
        } else {
            let outcomes = ledger.discard_outgoing();
            tracing::error!(outcomes, "the reply channel is closed; outcomes are lost");
        }
    }

    fn start_jobs(&mut self) {
        loop {
            let Some(start) = self.shared.ledger().start_next(Instant::now()) else {
                break;
            };
            let key = start.job.key.clone();
            let task = self.running.spawn(self.runner.clone().run(start));
            self.keys.insert(task.id(), key);
        }
        self.shared.publish_stats();
    }

    fn ended(&mut self, ended: Result<(Id, Ended), JoinError>) {
        let (id, ended) = match ended {
            Ok(ended) => ended,
            Err(error) => {
                tracing::error!(%error, "a job's task failed");
                let message = "a fault inside the service ended the request";
                (error.id(), Ended::failed(ErrorCode::Internal, message))
            }
        };
        if let Some(key) = self.keys.remove(&id) {
            self.shared.ledger().ended(&key, ended, Instant::now());
        }
    }
}

/// Waits until the store has news; for ever without a store.
async fn store_news(signals: Option<&Signals>) {
    match signals {
        Some(signals) => signals.news.notified().await,
        None => std::future::pending().await,
    }
}
