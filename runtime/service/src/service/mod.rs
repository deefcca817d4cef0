//! The service: the handle of those that submit requests, and the tasks behind it.

mod config;
mod dispatcher;
mod prompt_encoder;
mod rules_task;
mod shared;

use parking_lot::Mutex;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};

use crate::engine_thread::{EngineHandle, EngineLoad};
use crate::jobs::journal::{Journal, Stored};
use crate::jobs::ledger::Closed;
use crate::jobs::pixels::ImageReader;
use crate::jobs::runner::{END_WAIT, Runner};
use crate::stats::Stats;
use phi_edge_api::ReplyAddress;
use phi_edge_api::{JobKey, NewJob};
use phi_edge_api::{Refusal, Reply, ReplyBody};
use phi_edge_job::ErrorCode;
use phi_edge_job::Receipt;
use phi_edge_prompts::Prompts;
use phi_edge_rules::engine::RuleMessage;
use phi_edge_rules::{Event, ReplayedWindow, Rule, RuleCounters};
use phi_edge_store::Store;

use dispatcher::Dispatcher;

pub(crate) use shared::Shared;

pub use config::ServiceConfig;

/// The time for which a drain waits at its end for the outcomes to be taken, and for the engine's thread to end.
pub(crate) const HANDOVER_TIMEOUT: Duration = Duration::from_secs(5);

/// A handle of the service, which accepts jobs and gives each exactly one outcome. Clones share one service. Dropping the
/// last one aborts it; [`Service::drain`] ends it in good order.
#[derive(Clone)]
pub struct Service {
    shared: Arc<Shared>,
    tasks: Arc<Tasks>,
}

/// The tasks of the service, aborted with the last handle.
struct Tasks {
    dispatcher: Mutex<Option<JoinHandle<()>>>,
    rules: Mutex<Option<JoinHandle<()>>>,
}

impl Drop for Tasks {
    fn drop(&mut self) {
        for task in [&self.dispatcher, &self.rules] {
            if let Some(task) = task.lock().take() {
                task.abort();
            }
        }
    }
}

impl Service {
    /// Starts the service on the current tokio runtime, without a store. Chunks and outcomes go to `replies`: chunks only
    /// while it has room, outcomes as soon as it has.
    pub fn start(
        config: ServiceConfig,
        engine: EngineHandle,
        prompts: Arc<dyn Prompts>,
        replies: mpsc::Sender<Reply>,
    ) -> Self {
        Self::start_with(config, engine, prompts, replies, None)
    }

    /// As [`Service::start`], with a store: what an earlier process left in it goes on, nothing is accepted before it is
    /// stored, and no outcome leaves before it is.
    pub fn start_with(
        config: ServiceConfig,
        engine: EngineHandle,
        prompts: Arc<dyn Prompts>,
        replies: mpsc::Sender<Reply>,
        store: Option<Store>,
    ) -> Self {
        let shared = Arc::new(Shared::new(
            &config,
            &engine,
            Arc::clone(&prompts),
            Journal::new(store),
        ));
        let runner = Runner {
            engine: engine.client(),
            images: ImageReader::new(
                Arc::clone(&prompts),
                shared.decode_memory(),
                engine.engine_waker(),
            ),
            prompts,
            replies,
            chunk_interval: config.chunk_interval,
        };
        if let Err(error) = shared.set_rules(config.rules) {
            tracing::error!(error, "the rules can't be used");
        }
        shared.restore_if_any();
        let dispatcher = Dispatcher::new(Arc::clone(&shared), runner);
        let task = tokio::spawn(dispatcher.run(engine));
        let rules = tokio::spawn(rules_task::run(Arc::clone(&shared), config.rule_jobs.max(1)));
        Self {
            shared,
            tasks: Arc::new(Tasks {
                dispatcher: Mutex::new(Some(task)),
                rules: Mutex::new(Some(rules)),
            }),
        }
    }

    /// Submits a request. `Ok`: it is accepted (or is a repeat of one that was), can't be lost any more, and its outcome
    /// will come on the reply channel. `Err`: it is refused, and no outcome follows.
    ///
    /// A repeat of a known id with the same body gets the stored outcome again or waits for it.
    pub async fn submit(&self, job: NewJob) -> Result<(), Refusal> {
        self.receive(job, false, Instant::now()).await
    }

    /// As [`Service::submit`], for a message that the broker marked as sent again: where the request is
    /// known nothing more is sent.
    pub async fn submit_redelivered(&self, job: NewJob) -> Result<(), Refusal> {
        self.receive(job, true, Instant::now()).await
    }

    /// As [`Service::submit`] or, if `redelivered`, [`Service::submit_redelivered`], of a request that arrived at `arrived`:
    /// its time counts from then. The request has its place in the order of arrival, and can be cancelled, when this
    /// returns; dropping the future does not take it back.
    pub fn receive(
        &self,
        job: NewJob,
        redelivered: bool,
        arrived: Instant,
    ) -> impl Future<Output = Result<(), Refusal>> + Send + 'static {
        Arc::clone(&self.shared).receive(job, redelivered, arrived)
    }

    /// Adds a message to the windows of rules. The wait of the returned value ends when the message may be acknowledged: it
    /// is stored, or was dropped because it can't be.
    pub fn ingest(&self, message: &RuleMessage) -> Option<Ingested> {
        self.shared.ingest(message)
    }

    /// Applies the limits of `config` from now on, without its rules.
    pub fn set_limits(&self, config: &ServiceConfig) {
        self.shared.set_limits(config);
    }

    /// Replaces the rules. A rule that has changed only in its summary and outputs keeps its windows; those of others end
    /// now.
    ///
    /// # Errors
    /// A rule can't be used; one line. Then the old rules stay.
    pub fn set_rules(&self, rules: Vec<Rule>) -> Result<(), String> {
        self.shared.set_rules(rules)
    }

    /// Returns the event of a replayed window, with its summary.
    pub async fn summarise(&self, window: &ReplayedWindow) -> Event {
        let (published, _) = rules_task::summarise(&self.shared, window.pending_summary()).await;
        published.event
    }

    /// Returns the counters of the rules.
    pub fn rule_counters(&self) -> RuleCounters {
        let counters = self.shared.rule_engine().counters();
        let ledger = self.shared.ledger();
        let events = ledger.event_counters();
        RuleCounters {
            events_expired: events.expired,
            events_superseded: events.superseded,
            events_dropped: events.dropped,
            events_bytes: ledger.event_bytes(),
            ..counters
        }
    }

    /// Returns the state of the engine's thread.
    pub fn engine_load(&self) -> EngineLoad {
        self.shared.load.read()
    }

    /// Whether the engine is gone: [`Service::engine_lost`] waits for that.
    pub fn is_engine_lost(&self) -> bool {
        *self.shared.engine_lost.borrow()
    }

    /// Sends a reply that is not a job's outcome: a refusal or a dead letter. Resolves when it is stored, or can't be; it is
    /// sent in any case. `receipt` is that of the message it answers.
    pub fn post(
        &self,
        key: JobKey,
        address: ReplyAddress,
        body: ReplyBody,
        receipt: Option<Receipt>,
    ) -> impl Future<Output = ()> + Send + 'static {
        let shared = Arc::clone(&self.shared);
        if let ReplyBody::Error(refusal) = &body {
            shared
                .observers
                .notify(|observer| observer.refused(&key, &address, refusal));
        }
        let stored = shared.ledger().post(key, address, body, receipt);
        shared.changed();
        async move { shared.stored_or_not(stored).await }
    }

    /// Returns a refusal with a new `reply_id`.
    pub fn refusal(&self, code: ErrorCode, message: impl Into<String>) -> Refusal {
        self.shared.ledger().refuse(code, message)
    }

    /// Whether the message of this receipt was handled, so that its redelivery is to be ignored.
    pub fn is_redelivery(&self, receipt: &Receipt) -> bool {
        self.shared.ledger().is_redelivery(receipt)
    }

    /// Records the receipt of a message that needs no reply, so that its redelivery is ignored.
    pub fn dismiss(&self, receipt: Option<Receipt>) {
        self.shared.ledger().dismiss(receipt);
    }

    /// Forgets all receipts: the broker has lost the session, and delivers none of its messages again.
    pub fn forget_receipts(&self) {
        self.shared.ledger().forget_receipts();
    }

    /// Stores a note for the link over a restart. It replaces the one before, and is stored in order with the decisions about
    /// messages. The wait of the returned value ends when the note is stored, or can't be.
    pub fn note_link(&self, note: String) -> Option<Ingested> {
        self.shared.ledger().note_link(note).map(Ingested)
    }

    /// Returns the link's last note, also that of an earlier process.
    pub fn link_note(&self) -> Option<String> {
        self.shared.ledger().link_note()
    }

    /// Whether there is a job of this key, open or with a kept outcome.
    pub fn knows(&self, key: &JobKey) -> bool {
        self.shared.ledger().knows(key)
    }

    /// Removes the message of this [`Reply::delivery`], which the broker has acknowledged.
    pub fn delivered(&self, delivery: u64) {
        self.shared.ledger().delivered(delivery);
        self.shared.changed();
    }

    /// Removes the event of this [`Reply::delivery`], whose expiry has passed before the broker had it, and counts it.
    pub fn expired(&self, delivery: Option<u64>) {
        self.shared.ledger().event_expired(delivery);
        self.shared.changed();
    }

    /// Sets whether there is a connection to the broker. While there has been none for long, only the newest retained event
    /// of a topic is kept.
    pub fn set_connected(&self, connected: bool) {
        self.shared.set_connected(connected);
    }

    /// Cancels a job: before its start it ends as `cancelled`, later with the text it has. Returns false if no job of this
    /// key waits or runs.
    pub fn cancel(&self, key: &JobKey) -> bool {
        let (trace_id, found) = {
            let mut ledger = self.shared.ledger();
            let trace_id = ledger.trace_id(key).map(str::to_owned);
            (trace_id, ledger.cancel(key, Instant::now()))
        };
        tracing::debug!(
            job.id = key.id,
            job.client = key.client,
            trace_id,
            found,
            "cancel asked for"
        );
        self.shared.changed();
        found
    }

    /// Returns the present statistics.
    pub fn stats(&self) -> Stats {
        *self.shared.stats.borrow()
    }

    /// Returns the statistics, with each change.
    pub fn watch_stats(&self) -> watch::Receiver<Stats> {
        self.shared.stats.subscribe()
    }

    /// Waits until the engine is gone (it panicked). From then on all requests are refused: the process should end, so that
    /// its supervisor restarts it.
    pub async fn engine_lost(&self) {
        let mut lost = self.shared.engine_lost.subscribe();
        // The sender lives in `self`: no error can come.
        let _ = lost.wait_for(|lost| *lost).await;
    }

    /// Ends the service. From now on requests are refused as `unavailable`. What runs may end within `grace` and is then
    /// cut short. With a store, what was cut short and what has not started is kept for the next process; without,
    /// the former ends with the text it has and the latter as `unavailable`. Returns when all outcomes are taken off the
    /// reply channel's queue, or a few seconds later without that, with the engine's thread gone.
    pub async fn drain(&self, grace: Duration) {
        tracing::info!(grace_s = grace.as_secs_f64(), "draining");
        // Events that wait for their summary stay for the next process, as do windows.
        let rules = self.tasks.rules.lock().take();
        if let Some(rules) = rules {
            rules.abort();
            let _ = rules.await;
        }
        self.shared.ledger().close(Closed::Draining, Instant::now());
        self.shared.changed();
        let mut stats = self.watch_stats();
        if timeout(grace, stats.wait_for(|s| s.running == 0)).await.is_err() {
            self.shared.ledger().stop_running();
            // A runner gives up by itself after END_WAIT: this bound is a safeguard.
            let _ = timeout(END_WAIT + HANDOVER_TIMEOUT, stats.wait_for(|s| s.running == 0)).await;
        }
        let handed_over = stats.wait_for(|s| s.outcomes_waiting == 0);
        if timeout(HANDOVER_TIMEOUT, handed_over).await.is_err() {
            tracing::warn!(
                outcomes = self.stats().outcomes_waiting,
                "outcomes were not taken in time"
            );
        }
        self.shared.finish.send_replace(true);
        let task = self.tasks.dispatcher.lock().take();
        if let Some(task) = task
            && let Err(error) = task.await
        {
            tracing::error!(%error, "the dispatcher failed");
        }
    }
}

impl Service {
    /// Writes what is still unwritten and closes the store; nothing is stored after this.
    pub async fn close_store(&self) {
        let journal = self.shared.close_store();
        if let Err(error) = tokio::task::spawn_blocking(move || drop(journal)).await {
            tracing::error!(%error, "the store was not closed in good order");
        }
    }
}

/// A message of a rule that is being stored.
#[derive(Debug)]
pub struct Ingested(Stored);

impl Ingested {
    /// Waits until the message is stored, or can't be. Cancel safe: may be called again after a wait that was dropped.
    pub async fn wait(&mut self) {
        if let Err(reason) = self.0.ready().await {
            tracing::debug!(%reason, "a message of a rule is in memory alone");
        }
    }
}
