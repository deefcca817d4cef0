//! What the handle, the dispatcher and the tasks of rules share: the ledger and the rule engine behind their locks.

use parking_lot::MutexGuard;
use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use phi_edge_engine::TokenId;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::{Ingested, Shared};
use crate::door::{Encode, NotEncoded};
use crate::jobs::journal::Stored;
use crate::jobs::ledger::{Admission, Ledger};
use crate::prompts::Prompts;
use phi_edge_api::{Answer, DeadLetter, Refusal, ReplyBody};
use phi_edge_api::{JobKey, NewJob};
use phi_edge_job::ErrorCode;
use phi_edge_job::TraceParent;
use phi_edge_rules::changes::{PendingEvent, RuleChange};
use phi_edge_rules::engine::{RuleEngine, RuleMessage};
use phi_edge_rules::{Published, Rule, Time};

impl Shared {
    /// As [`Service::receive`].
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
        // A task of its own: whoever waits may leave.
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

    /// As [`Service::receive`], for what is asked within this process: the outcome comes back here.
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
            // The broker holds back what it waits for; QoS 0 comes however slow the disk is.
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
        // Nobody waits for a store that fails.
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

    /// Ends windows that are due; tells when the next one is.
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

    /// Hands on the events that go without words.
    pub(crate) fn publish_facts(&self) {
        loop {
            let next = self.rule_engine().take_facts_only();
            let Some(PendingEvent { event, output, .. }) = next else {
                return;
            };
            self.publish_event(Published { event, output }, &[]);
        }
    }

    /// Hands an event on; the jobs that worded it are forgotten.
    pub(crate) fn publish_event(&self, published: Published, jobs: &[JobKey]) {
        self.observers.notify(|observer| observer.event(&published.event));
        let mut rule_engine = self.rule_engine();
        let change = rule_engine.complete_event(&published.event);
        self.ledger().publish_event(published, change, jobs, wall());
        drop(rule_engine);
        self.changed();
    }

    /// Reads what an earlier process left, if it has just become readable.
    pub(crate) fn restore_if_any(&self) {
        let mut rule_engine = self.rule_engine();
        let restored = self
            .ledger()
            .restore_if_any(self.prompts.as_ref(), Instant::now(), wall());
        if let Some(restored) = restored {
            let changes = rule_engine.restore(restored, wall());
            self.ledger().note_rules(changes);
            self.rules_wake.notify_one();
        }
    }

    /// Gives the store all there is.
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
        &self.prompts
    }

    /// The most tokens of a prompt that leaves room for so many new ones.
    pub(crate) fn room_for_prompt(&self, new_tokens: usize) -> usize {
        let room = self.engine.context_length.saturating_sub(new_tokens + 1);
        room.min(self.max_prompt_tokens.load(Ordering::Relaxed))
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
                    // Ends with an error, when the other has arrived or was refused.
                    while arriving.changed().await.is_ok() {}
                    admission = self.ledger().admit(&job, redelivered, Instant::now());
                }
                Admission::New { session_tokens } => {
                    let key = job.key.clone();
                    let accepted = self.accept(job, session_tokens, arrived).await;
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

    async fn accept(&self, mut job: NewJob, said: Vec<TokenId>, arrived: Instant) -> Result<(), Refusal> {
        let said_before = said.len();
        let encode = Encode {
            messages: std::mem::take(&mut job.messages),
            said,
            most: self.room_for_prompt(0),
            expires: self.ledger().expires(&job, arrived),
        };
        let encoded = self.door.encode(&self.prompts, encode).await;
        let stored = {
            let mut ledger = self.ledger();
            match encoded {
                Ok(prompt) => ledger.accept(job, prompt, arrived, Instant::now())?,
                Err(fault) => return Err(self.not_encoded(&mut ledger, &job, fault, said_before)),
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

    fn not_encoded(
        &self,
        ledger: &mut Ledger,
        job: &NewJob,
        fault: NotEncoded,
        said_before: usize,
    ) -> Refusal {
        match fault {
            NotEncoded::TooLong { tokens, exact } => self.too_long(ledger, tokens, exact, said_before),
            NotEncoded::Refused(message) => ledger.refuse(
                ErrorCode::BadRequest,
                format!("messages: the prompt can't be built: {message}"),
            ),
            NotEncoded::Expired => ledger.refuse(
                ErrorCode::Expired,
                "the deadline passed before the request's turn to be encoded came",
            ),
            NotEncoded::Failed => ledger.refuse(ErrorCode::Internal, "the prompt can't be encoded"),
            NotEncoded::GivenUp {
                deaths,
                first,
                messages,
            } => {
                let message = format!(
                    "the service ended {deaths} times while it encoded this prompt alone; it is not encoded again"
                );
                if first {
                    tracing::error!(
                        job.id = job.key.id,
                        job.client = job.key.client,
                        trace_id = job.trace_id(),
                        deaths,
                        "a prompt is given up"
                    );
                    let text: Vec<&str> = messages.iter().map(|message| message.content.as_str()).collect();
                    let text = text.join("\n");
                    let letter = DeadLetter {
                        reason: ErrorCode::Internal.as_str().to_owned(),
                        message: message.clone(),
                        topic: job.reply.topic().unwrap_or_default().to_owned(),
                        id: Some(job.key.id.clone()),
                        payload: DeadLetter::beginning(text.as_bytes()),
                        bytes: job.payload_bytes.unwrap_or(text.len()),
                    };
                    ledger.dead_letter(job.key.clone(), letter);
                }
                ledger.refuse(ErrorCode::Internal, message)
            }
        }
    }

    /// The refusal of a prompt of so many tokens, or at least so many.
    fn too_long(&self, ledger: &mut Ledger, tokens: usize, exact: bool, said_before: usize) -> Refusal {
        let context = self.engine.context_length;
        let count = if exact { "" } else { "at least " };
        if tokens < context {
            let most = self.max_prompt_tokens.load(Ordering::Relaxed);
            let message =
                format!("the prompt has {count}{tokens} tokens, limits.max_prompt_tokens is {most}");
            return ledger.refuse(ErrorCode::TooLarge, message);
        }
        let mut message = format!(
            "the prompt has {count}{tokens} tokens; with room for one new token the context takes {context}"
        );
        if said_before > 0 {
            let _ = write!(
                message,
                "; {said_before} of them are what the session has said so far: begin a new one"
            );
        }
        ledger.refuse(ErrorCode::ContextOverflow, message)
    }

    /// Waits for messages that promise nothing: they leave even if they can't be stored.
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

    /// Tells the world that the ledger has changed.
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

/// Takes a listener back when whoever listens leaves.
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
