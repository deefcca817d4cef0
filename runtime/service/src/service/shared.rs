//! The state that the handle, the dispatcher and the tasks of rules share: the ledger and the rule engine behind their locks.

use parking_lot::{Mutex, MutexGuard};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, oneshot, watch};
use tokio::time::Instant;

use super::prompt_encoder::PromptEncoder;
use super::{Ingested, ServiceConfig};
use crate::engine_thread::{EngineHandle, EngineInfo, LoadGauge, PrefixGauge, Throttle, Waker};
use crate::jobs::journal::{Journal, Stored};
use crate::jobs::ledger::{Admission, EngineOutlook, Ledger};
use crate::jobs::sessions::SessionSoFar;
use crate::observers::Observers;
use crate::stats::Stats;
use phi_edge_api::{Answer, Refusal, ReplyBody};
use phi_edge_api::{JobKey, NewJob};
use phi_edge_job::ErrorCode;
use phi_edge_job::TraceParent;
use phi_edge_prompts::{DecodeMemory, Prompts};
use phi_edge_rules::changes::{PendingEvent, RuleChange};
use phi_edge_rules::engine::{QueueCapacity, RuleEngine, RuleMessage};
use phi_edge_rules::{Published, Rule, Time};
use phi_edge_store::Signals;

/// The state and the signals that the handle, the dispatcher and the tasks of rules share.
pub(crate) struct Shared {
    ledger: Mutex<Ledger>,
    /// Locked before the ledger where both are.
    rule_engine: Mutex<RuleEngine>,
    encoder: PromptEncoder,
    engine: EngineInfo,
    pub(super) load: LoadGauge,
    prefixes: PrefixGauge,
    throttle: Throttle,
    waker: Waker,
    pub(super) observers: Observers,
    pub(super) stats: watch::Sender<Stats>,
    /// The signals of the store, if there is one.
    pub(crate) signals: Option<Arc<Signals>>,
    /// Wakes the dispatcher: the ledger has changed.
    pub(crate) wake: Notify,
    /// Wakes the task of rules: the rule engine has pending events or other deadlines.
    pub(crate) rules_wake: Notify,
    /// Becomes true when the dispatcher is to end.
    pub(crate) finish: watch::Sender<bool>,
    /// Becomes true when the engine has panicked.
    pub(crate) engine_lost: watch::Sender<bool>,
}

impl Shared {
    /// The state of a service without jobs, rules or restored state.
    pub(super) fn new(
        config: &ServiceConfig,
        engine: &EngineHandle,
        prompts: Arc<dyn Prompts>,
        journal: Journal,
    ) -> Self {
        let boot = rand::random();
        let signals = journal.signals();
        let encoder = PromptEncoder::new(prompts, journal.folder(), engine.info(), config);
        let ledger = Ledger::new(config.limits(engine.info()), boot, journal);
        let rule_engine = RuleEngine::new(boot, config.rules_bytes, QueueCapacity::DEFAULT);
        Self {
            stats: watch::Sender::new(ledger.stats()),
            ledger: Mutex::new(ledger),
            rule_engine: Mutex::new(rule_engine),
            encoder,
            engine: engine.info().clone(),
            load: engine.load(),
            prefixes: engine.prefixes(),
            throttle: engine.throttle(),
            waker: engine.waker(),
            observers: config.observers.clone(),
            signals,
            wake: Notify::new(),
            rules_wake: Notify::new(),
            finish: watch::Sender::new(false),
            engine_lost: watch::Sender::new(false),
        }
    }

    /// Applies the limits of `config` from now on.
    pub(super) fn set_limits(&self, config: &ServiceConfig) {
        self.encoder
            .set_limits(config.max_prompt_tokens, config.image_pixels);
        self.ledger().set_limits(config.limits(&self.engine));
        self.changed();
    }

    /// Closes the crash note and returns the journal with the store; nothing is stored after this.
    pub(super) fn close_store(&self) -> Journal {
        self.encoder.close();
        self.ledger().close_store()
    }

    /// As [`super::Service::receive`].
    pub(crate) fn receive(
        self: Arc<Self>,
        job: NewJob,
        redelivered: bool,
        arrived: Instant,
    ) -> impl Future<Output = Result<(), Refusal>> + Send + 'static {
        let key = job.key.clone();
        let trace = job.reply.traceparent.clone();
        let first = self.ledger().admit(&job, redelivered, Instant::now());
        let shared = Arc::clone(&self);
        // A task of its own: the caller may drop the future.
        let task = tokio::spawn(async move {
            let taken = shared.take(job, redelivered, arrived, first).await;
            shared.changed();
            if let Err(refusal) = &taken {
                tracing::info!(
                    job.id = key.id,
                    job.client = key.client,
                    code = refusal.code.as_str(),
                    error = refusal.message,
                    trace_id = trace.as_ref().map(TraceParent::trace_id),
                    "request refused"
                );
            }
            taken
        });
        async move {
            task.await.unwrap_or_else(|error| {
                tracing::error!(%error, "taking a request failed");
                Err(self
                    .ledger()
                    .refuse(ErrorCode::Internal, "a fault inside the service"))
            })
        }
    }

    /// Submits an internal job; returns its outcome.
    pub(crate) async fn ask(self: Arc<Self>, job: NewJob) -> Result<Answer, Refusal> {
        let key = job.key.clone();
        let (listener, outcome) = oneshot::channel();
        Arc::clone(&self).receive(job, false, Instant::now()).await?;
        self.ledger().listen(&key, listener);
        let forget = Unlisten {
            shared: &self,
            key: &key,
        };
        let outcome = outcome.await;
        drop(forget);
        match outcome {
            Ok(ReplyBody::Final(answer)) => Ok(answer),
            Ok(ReplyBody::Error(refusal)) => Err(refusal),
            _ => Err(self
                .ledger()
                .refuse(ErrorCode::Internal, "the answer was lost on its way")),
        }
    }

    pub(super) fn ingest(&self, message: &RuleMessage) -> Option<Ingested> {
        let mut rule_engine = self.rule_engine();
        let storable = {
            let ledger = self.ledger();
            let receipt = message.receipt.as_ref();
            if message.redelivered && receipt.is_some_and(|receipt| ledger.is_redelivery(receipt)) {
                rule_engine.redelivered();
                return None;
            }
            // Flow control bounds the messages that have a receipt; those of QoS 0 come however slow the disk is.
            ledger.store_failing().is_none() && (receipt.is_some() || !ledger.store_behind())
        };
        let changes = if storable {
            rule_engine.ingest(message, wall())
        } else {
            rule_engine.ingest_unstorable(message, wall())
        };
        let waiting = changes.iter().any(RuleChange::needs_summary);
        let stored = self.ledger().note_ingested(message.receipt, changes);
        drop(rule_engine);
        if waiting {
            self.rules_wake.notify_one();
        }
        // A store that fails gives no answer to wait for.
        stored.filter(|_| storable).map(Ingested)
    }

    pub(super) fn set_rules(&self, rules: Vec<Rule>) -> Result<(), String> {
        let mut rule_engine = self.rule_engine();
        let changes = rule_engine.set_rules(rules, wall())?;
        self.ledger().note_rules(changes);
        drop(rule_engine);
        self.rules_wake.notify_one();
        Ok(())
    }

    /// Closes windows that are due; returns the time until the next one is.
    pub(crate) fn tick_rules(&self) -> Option<Duration> {
        let mut rule_engine = self.rule_engine();
        let now = wall();
        let changes = rule_engine.tick(now);
        let mut ledger = self.ledger();
        ledger.note_rules(changes);
        ledger.sweep_events_in_time(now);
        drop(ledger);
        if let Some(due) = rule_engine.summary_due() {
            self.waker.needed_in(due.since(now));
        }
        rule_engine.due().map(|due| due.since(now))
    }

    /// Publishes the pending events that need no summary.
    pub(crate) fn publish_facts(&self) {
        loop {
            let next = self.rule_engine().take_facts_only();
            let Some(PendingEvent { event, output, .. }) = next else {
                return;
            };
            self.publish_event(Published { event, output }, &[]);
        }
    }

    /// Publishes an event, and forgets the jobs that summarised it.
    pub(crate) fn publish_event(&self, published: Published, jobs: &[JobKey]) {
        self.observers.notify(|observer| observer.event(&published.event));
        let mut rule_engine = self.rule_engine();
        let change = rule_engine.complete_event(&published.event);
        self.ledger().publish_event(published, change, jobs, wall());
        drop(rule_engine);
        self.changed();
    }

    /// Restores the state of an earlier process, if it has just become readable.
    pub(crate) fn restore_if_any(&self) {
        let mut rule_engine = self.rule_engine();
        let restored = self
            .ledger()
            .restore_if_any(self.encoder.prompts().as_ref(), Instant::now(), wall());
        if let Some(restored) = restored {
            let changes = rule_engine.restore(restored, wall());
            self.ledger().note_rules(changes);
            self.rules_wake.notify_one();
        }
    }

    /// Hands the complete state to the store.
    pub(crate) fn write_all(&self) {
        let rule_engine = self.rule_engine();
        let rules = rule_engine.all();
        self.ledger().write_all(&rules, wall());
    }

    pub(super) fn set_connected(&self, connected: bool) {
        self.ledger().set_connected(connected, wall());
    }

    pub(crate) fn rule_engine(&self) -> MutexGuard<'_, RuleEngine> {
        self.rule_engine.lock()
    }

    pub(crate) fn prompts(&self) -> &Arc<dyn Prompts> {
        self.encoder.prompts()
    }

    /// Returns the maximum number of tokens of a prompt that leaves room for `new_tokens` in the context.
    pub(crate) fn room_for_prompt(&self, new_tokens: usize) -> usize {
        self.encoder.max_tokens(new_tokens)
    }

    /// Returns the memory for decoding images for the engine.
    pub(super) fn decode_memory(&self) -> DecodeMemory {
        self.encoder.decode_memory()
    }

    /// Draws pictures on one sheet.
    ///
    /// # Errors
    /// None of them can be read.
    pub(crate) async fn contact_sheet(
        &self,
        files: Vec<Arc<[u8]>>,
    ) -> Result<phi_edge_models::ContactSheet, String> {
        self.encoder.contact_sheet(files).await
    }

    async fn take(
        &self,
        job: NewJob,
        redelivered: bool,
        arrived: Instant,
        mut admission: Result<Admission, Refusal>,
    ) -> Result<(), Refusal> {
        loop {
            match admission? {
                Admission::Duplicate(stored) => {
                    self.stored_or_not(stored).await;
                    return Ok(());
                }
                Admission::Arriving(mut arriving) => {
                    // An error: the channel is closed, because the other request has arrived or was refused.
                    while arriving.changed().await.is_ok() {}
                    admission = self.ledger().admit(&job, redelivered, Instant::now());
                }
                Admission::New { session } => {
                    let key = job.key.clone();
                    let accepted = self.accept(job, session, arrived).await;
                    let mut ledger = self.ledger();
                    match accepted {
                        Ok(()) => ledger.arrived(&key, Instant::now()),
                        Err(_) => ledger.abandon(&key, Instant::now()),
                    }
                    return accepted;
                }
            }
        }
    }

    async fn accept(&self, mut job: NewJob, session: SessionSoFar, arrived: Instant) -> Result<(), Refusal> {
        let SessionSoFar { symbols, images } = session;
        let session_length = symbols.len();
        let expires = self.ledger().expires(&job, arrived);
        let encoded = self.encoder.encode(&mut job, symbols, expires).await;
        let stored = match encoded {
            Ok(encoded) => {
                let outlook = EngineOutlook {
                    cached_tokens: self.prefixes.read().longest(&encoded.prompt.ids, job.max_tokens),
                    share: self.throttle.share(),
                };
                self.ledger()
                    .accept(job, encoded, images, outlook, arrived, Instant::now())?
            }
            Err(error) => {
                return Err(self
                    .encoder
                    .refuse(&mut self.ledger(), &job, error, session_length));
            }
        };
        match stored {
            None => Ok(()),
            Some(stored) => stored.wait().await.map_err(|reason| {
                self.ledger().refuse(
                    ErrorCode::Unavailable,
                    format!("the request can't be stored ({reason}); send it again later"),
                )
            }),
        }
    }

    /// Waits until a refusal or a dead letter is stored; it leaves even if it can't be.
    pub(super) async fn stored_or_not(&self, stored: Option<Stored>) {
        let Some(stored) = stored else { return };
        let batch = stored.batch;
        if let Err(reason) = stored.wait().await {
            tracing::debug!(%reason, "a message leaves without being stored");
            self.ledger().leave_unstored(batch);
            self.wake.notify_one();
        }
    }

    pub(crate) fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock()
    }

    /// Publishes a change of the ledger: the statistics, and a signal to the dispatcher.
    pub(super) fn changed(&self) {
        self.publish_stats();
        self.wake.notify_one();
    }

    pub(crate) fn publish_stats(&self) {
        // Taken under the channel's lock, so that an older snapshot can't overwrite a newer one.
        self.stats.send_if_modified(|stats| {
            let new = self.ledger().stats();
            let changed = *stats != new;
            *stats = new;
            changed
        });
    }
}

/// Removes a listener of an outcome when it is dropped.
struct Unlisten<'a> {
    shared: &'a Shared,
    key: &'a JobKey,
}

impl Drop for Unlisten<'_> {
    fn drop(&mut self) {
        self.shared.ledger().unlisten(self.key);
    }
}

fn wall() -> Time {
    Time(phi_edge_store::wall_ms())
}
