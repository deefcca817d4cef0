//! The service: a handle for those who bring requests, and the task behind it.

use std::fmt::Write as _;
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use phi_edge_engine::TokenId;
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};

use crate::dispatcher::Dispatcher;
use crate::engine_handle::{EngineHandle, EngineInfo, EngineLoad, LoadGauge, Waker};
use crate::job::ReplyAddress;
use crate::job::{JobKey, NewJob};
use crate::journal::{Journal, Stored};
use crate::ledger::{Closed, Ledger, Limits, Verdict};
use crate::prompts::Prompts;
use crate::quota::Quota;
use crate::reply::{Answer, ErrorCode, Refusal, Reply, ReplyBody};
use crate::rules::book::{Book, RuleMessage};
use crate::rules::record::RuleChange;
use crate::rules::{Event, Published, ReplayedWindow, Rule, RuleCounters, Time, worded};
use crate::runner::{END_WAIT, Runner};
use crate::stats::Stats;
use crate::store::{Signals, Store};
use crate::trace::TraceParent;
use crate::witness::Witnesses;

/// How long a drain waits at its end for the outcomes to be taken, and for the engine's thread to end.
pub(crate) const HANDOVER: Duration = Duration::from_secs(5);

/// Bounds and times of the service.
#[derive(Debug, Clone, PartialEq)]
pub struct ServiceConfig {
    /// The most jobs that wait for a slot; one more is refused as `busy`. Also the most outcomes that may
    /// wait to be taken before new requests are refused.
    pub queue: usize,
    /// The longest time a job may take from acceptance to its end, and the default.
    pub max_deadline: Duration,
    /// The most tokens a prompt may have; none means what the model's context holds.
    pub max_prompt_tokens: Option<usize>,
    /// The least time between two chunks of an answer.
    pub chunk_interval: Duration,
    /// How long an outcome is kept for a client that asks again.
    pub keep_for: Duration,
    /// The most outcomes that are kept; the oldest go first.
    pub keep_outcomes: usize,
    /// The most text, in bytes, of all outcomes that are kept.
    pub keep_bytes: usize,
    /// How long a session that nobody uses is kept.
    pub session_ttl: Duration,
    /// The most memory of sessions that nobody uses, in bytes: four a token.
    pub session_memory: usize,
    /// What one client may ask for.
    pub quota: Quota,
    /// The model's name, for answers.
    pub model: String,
    /// What to make of which messages.
    pub rules: Vec<Rule>,
    /// Windows that get their words at the same time.
    pub rule_jobs: usize,
    /// The most that the messages of open windows may cost, in memory and in the store, in bytes.
    pub rules_bytes: u64,
    /// Who is told of every end.
    pub witnesses: Witnesses,
}

impl Default for ServiceConfig {
    fn default() -> Self {
        Self {
            queue: 64,
            max_deadline: Duration::from_mins(10),
            max_prompt_tokens: None,
            chunk_interval: Duration::from_millis(100),
            keep_for: Duration::from_mins(10),
            keep_outcomes: 1024,
            keep_bytes: 8 << 20,
            session_ttl: Duration::from_mins(30),
            session_memory: 16 << 20,
            quota: Quota::default(),
            model: String::new(),
            rules: Vec::new(),
            rule_jobs: 2,
            rules_bytes: 64 << 20,
            witnesses: Witnesses::default(),
        }
    }
}

impl ServiceConfig {
    fn limits(&self, slots: usize) -> Limits {
        Limits {
            slots: slots.max(1),
            queue: self.queue.max(1),
            max_deadline: self.max_deadline,
            keep_for: self.keep_for,
            keep_outcomes: self.keep_outcomes,
            keep_bytes: self.keep_bytes,
            session_ttl: self.session_ttl,
            session_memory: self.session_memory,
            quota: self.quota,
            model: self.model.as_str().into(),
            witnesses: self.witnesses.clone(),
        }
    }
}

/// Takes jobs and sees to it that each gets its one outcome. Clones share one service; when the last is
/// dropped, it ends without ceremony: [`Service::drain`] is the orderly way.
#[derive(Clone)]
pub struct Service {
    shared: Arc<Shared>,
    tasks: Arc<Tasks>,
}

pub(crate) struct Shared {
    ledger: Mutex<Ledger>,
    /// Locked before the ledger where both are.
    book: Mutex<Book>,
    /// Tells the task of the rules that the book has something for it.
    pub(crate) rules_wake: Notify,
    prompts: Arc<dyn Prompts>,
    engine: EngineInfo,
    /// The largest number for no bound.
    max_prompt_tokens: AtomicUsize,
    load: LoadGauge,
    waker: Waker,
    witnesses: Witnesses,
    /// Tells the dispatcher that the ledger has something for it.
    pub(crate) wake: Notify,
    stats: watch::Sender<Stats>,
    /// What the store tells, if there is one.
    pub(crate) signals: Option<Arc<Signals>>,
    /// Ends the dispatcher.
    pub(crate) finish: watch::Sender<bool>,
    pub(crate) engine_lost: watch::Sender<bool>,
}

/// Ends with the last handle.
struct Tasks {
    dispatcher: Mutex<Option<JoinHandle<()>>>,
    rules: Mutex<Option<JoinHandle<()>>>,
}

impl Drop for Tasks {
    fn drop(&mut self) {
        for task in [&self.dispatcher, &self.rules] {
            if let Some(task) = lock(task).take() {
                task.abort();
            }
        }
    }
}

impl Service {
    /// Starts the service on the current tokio runtime, in memory alone. Chunks and outcomes go to `replies`: chunks
    /// only while it has room, outcomes as soon as it has.
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
        let limits = config.limits(engine.info().slots);
        // The standard library's hasher seeds are random: unique enough to tell processes apart.
        let boot = RandomState::new().hash_one(std::process::id());
        let journal = Journal::new(store);
        let signals = journal.signals();
        let ledger = Ledger::new(limits, boot, journal);
        let shared = Arc::new(Shared {
            signals,
            book: Mutex::new(Book::new(boot, config.rules_bytes)),
            rules_wake: Notify::new(),
            stats: watch::Sender::new(ledger.stats()),
            ledger: Mutex::new(ledger),
            prompts: Arc::clone(&prompts),
            engine: engine.info().clone(),
            max_prompt_tokens: AtomicUsize::new(config.max_prompt_tokens.unwrap_or(usize::MAX)),
            load: engine.load(),
            waker: engine.waker(),
            witnesses: config.witnesses.clone(),
            wake: Notify::new(),
            finish: watch::Sender::new(false),
            engine_lost: watch::Sender::new(false),
        });
        let runner = Runner {
            engine: engine.client(),
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
        let rules = tokio::spawn(worded::run(Arc::clone(&shared), config.rule_jobs.max(1)));
        Self {
            shared,
            tasks: Arc::new(Tasks {
                dispatcher: Mutex::new(Some(task)),
                rules: Mutex::new(Some(rules)),
            }),
        }
    }

    /// Takes a request. `Ok`: it is accepted (or is a repeat of one that was), can't be lost any more, and its outcome
    /// will come on the reply channel. `Err`: it is not, and the refusal is all there will be.
    ///
    /// A repeat of a known id with the same body gets the stored outcome again or waits for it.
    pub async fn submit(&self, job: NewJob) -> Result<(), Refusal> {
        self.receive(job, false).await
    }

    /// As [`Service::submit`], for a message that the broker marked as sent again: where the request is
    /// known nothing more is sent.
    pub async fn submit_redelivered(&self, job: NewJob) -> Result<(), Refusal> {
        self.receive(job, true).await
    }

    /// As [`Service::submit`] or, if `redelivered`, [`Service::submit_redelivered`]. The request has its place among
    /// others, and can be cancelled, when this returns; dropping what it returns takes nothing back.
    pub fn receive(
        &self,
        job: NewJob,
        redelivered: bool,
    ) -> impl Future<Output = Result<(), Refusal>> + Send + 'static {
        Arc::clone(&self.shared).receive(job, redelivered)
    }

    /// Counts a message in the windows of rules. What it returns resolves when the message may be acknowledged: it is
    /// stored, or was dropped because it can't be.
    pub fn observe(&self, message: &RuleMessage) -> Option<Observed> {
        self.shared.observe(message)
    }

    /// Holds what comes from now on to the limits of `config`; its rules are not looked at.
    pub fn set_limits(&self, config: &ServiceConfig) {
        let limits = config.limits(self.shared.engine.slots);
        self.shared
            .max_prompt_tokens
            .store(config.max_prompt_tokens.unwrap_or(usize::MAX), Ordering::Relaxed);
        self.shared.ledger().set_limits(limits);
        self.shared.changed();
    }

    /// Takes these rules in place of those there are: one that has changed only in its words and outputs goes on with its
    /// windows, those of others end now.
    ///
    /// # Errors
    /// A rule can't be used; one line. Then the old ones stay.
    pub fn set_rules(&self, rules: Vec<Rule>) -> Result<(), String> {
        self.shared.set_rules(rules)
    }

    /// Words for a window that was ended elsewhere.
    pub async fn word(&self, window: &ReplayedWindow) -> Event {
        let (published, _) = worded::worded(&self.shared, window.pending.clone(), Some(&window.rule)).await;
        published.event
    }

    /// How rules are doing.
    pub fn rule_counters(&self) -> RuleCounters {
        self.shared.book().counters()
    }

    /// How the engine's thread is doing.
    pub fn engine_load(&self) -> EngineLoad {
        self.shared.load.read()
    }

    /// Whether the engine is gone: [`Service::engine_lost`] waits for that.
    pub fn is_engine_lost(&self) -> bool {
        *self.shared.engine_lost.borrow()
    }

    /// Sends what is no job's outcome: a refusal, a dead letter. Resolves when it is stored, or when it is clear that it
    /// will not be; it leaves in any case. `receipt` is that of the message it answers.
    pub fn post(
        &self,
        key: JobKey,
        address: ReplyAddress,
        body: ReplyBody,
        receipt: Option<[u8; 32]>,
    ) -> impl Future<Output = ()> + Send + 'static {
        let shared = Arc::clone(&self.shared);
        if let ReplyBody::Error(refusal) = &body {
            shared.witnesses.tell(|witness| witness.refused(&key, refusal));
        }
        let stored = shared.ledger().post(key, address, body, receipt);
        shared.changed();
        async move { shared.stored_or_not(stored).await }
    }

    /// A name for a refusal's `reply_id`.
    pub fn refusal(&self, code: ErrorCode, message: impl Into<String>) -> Refusal {
        self.shared.ledger().refuse(code, message)
    }

    /// Whether a request of this receipt was refused, so that its redelivery needs no other answer.
    pub fn was_refused(&self, receipt: &[u8; 32]) -> bool {
        self.shared.ledger().was_refused(receipt)
    }

    /// Whether there is, or was lately, a job of this name.
    pub fn knows(&self, key: &JobKey) -> bool {
        self.shared.ledger().knows(key)
    }

    /// The broker has acknowledged the message of this [`Reply::delivery`]: it is kept no longer.
    pub fn delivered(&self, delivery: u64) {
        self.shared.ledger().delivered(delivery);
        self.shared.changed();
    }

    /// Takes a job back: before its start it ends as `cancelled`, later with the text it has. False if no
    /// job of this name waits or runs.
    pub fn cancel(&self, key: &JobKey) -> bool {
        let found = self.shared.ledger().cancel(key, Instant::now());
        tracing::debug!(
            job.id = key.id,
            job.client = key.client,
            found,
            "cancel asked for"
        );
        self.shared.changed();
        found
    }

    /// How things stand.
    pub fn stats(&self) -> Stats {
        *self.shared.stats.borrow()
    }

    /// How things stand, and each change.
    pub fn watch_stats(&self) -> watch::Receiver<Stats> {
        self.shared.stats.subscribe()
    }

    /// Waits until the engine is gone (it panicked). From then on all requests are refused: the process
    /// should end, so that whoever supervises it starts it anew.
    pub async fn engine_lost(&self) {
        let mut lost = self.shared.engine_lost.subscribe();
        // The sender lives in `self`: no error can come.
        let _ = lost.wait_for(|lost| *lost).await;
    }

    /// Ends the service. From now on requests are refused as `unavailable`. What runs may end within `grace` and is then
    /// cut short. With a store, what was cut short and what has not started is kept for the next process; without,
    /// the former ends with the text it has and the latter as `unavailable`. Returns when all outcomes are taken
    /// off the reply channel's queue, or a few seconds after nobody took them, with the engine's thread gone.
    pub async fn drain(&self, grace: Duration) {
        tracing::info!(grace_s = grace.as_secs_f64(), "draining");
        // Events without words keep for the next process, as do windows.
        let rules = lock(&self.tasks.rules).take();
        if let Some(rules) = rules {
            rules.abort();
            let _ = rules.await;
        }
        self.shared.ledger().close(Closed::Draining, Instant::now());
        self.shared.changed();
        let mut stats = self.watch_stats();
        if timeout(grace, stats.wait_for(|s| s.running == 0)).await.is_err() {
            self.shared.ledger().stop_running();
            // A runner gives up by itself after END_WAIT: this only bounds what can't be.
            let _ = timeout(END_WAIT + HANDOVER, stats.wait_for(|s| s.running == 0)).await;
        }
        let handed_over = stats.wait_for(|s| s.outcomes_waiting == 0);
        if timeout(HANDOVER, handed_over).await.is_err() {
            tracing::warn!(
                outcomes = self.stats().outcomes_waiting,
                "outcomes were not taken in time"
            );
        }
        self.shared.finish.send_replace(true);
        let task = lock(&self.tasks.dispatcher).take();
        if let Some(task) = task
            && let Err(error) = task.await
        {
            tracing::error!(%error, "the dispatcher failed");
        }
    }
}

impl Service {
    /// Writes what is still to be written and lets the store go; nothing is kept after this.
    pub async fn close_store(&self) {
        let journal = self.shared.ledger().close_store();
        if let Err(error) = tokio::task::spawn_blocking(move || drop(journal)).await {
            tracing::error!(%error, "the store was not closed in good order");
        }
    }
}

impl Shared {
    /// As [`Service::receive`].
    pub(crate) fn receive(
        self: Arc<Self>,
        job: NewJob,
        redelivered: bool,
    ) -> impl Future<Output = Result<(), Refusal>> + Send + 'static {
        let key = job.key.clone();
        let trace = job.reply.traceparent.clone();
        let first = self.ledger().admit(&job, redelivered, Instant::now());
        let shared = Arc::clone(&self);
        // A task of its own: whoever waits may leave.
        let task = tokio::spawn(async move {
            let taken = shared.take(job, redelivered, first).await;
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
        Arc::clone(&self).receive(job, false).await?;
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

    fn observe(&self, message: &RuleMessage) -> Option<Observed> {
        let mut book = self.book();
        if self.ledger().store_failing().is_some() {
            book.drop_message(message);
            return None;
        }
        let changes = book.observe(message, wall());
        let waiting = changes.iter().any(RuleChange::calls_for_words);
        let stored = self.ledger().note_rules(changes);
        drop(book);
        if waiting {
            self.rules_wake.notify_one();
        }
        stored.map(Observed)
    }

    fn set_rules(&self, rules: Vec<Rule>) -> Result<(), String> {
        let mut book = self.book();
        let changes = book.set_rules(rules, wall())?;
        self.ledger().note_rules(changes);
        drop(book);
        self.rules_wake.notify_one();
        Ok(())
    }

    /// Ends windows that are due; tells when the next one is.
    pub(crate) fn tick_rules(&self) -> Option<Duration> {
        let mut book = self.book();
        let now = wall();
        let changes = book.tick(now);
        self.ledger().note_rules(changes);
        if let Some(due) = book.words_due() {
            self.waker.needed_in(due.since(now));
        }
        book.due().map(|due| due.since(now))
    }

    /// Hands an event on; the jobs that worded it are forgotten.
    pub(crate) fn publish_event(&self, published: Published, jobs: &[JobKey]) {
        self.witnesses.tell(|witness| witness.event(&published.event));
        let mut book = self.book();
        let change = book.posted(&published.event);
        self.ledger().publish_event(published, change, jobs);
        drop(book);
        self.changed();
    }

    /// Reads what an earlier process left, if it has just become readable.
    pub(crate) fn restore_if_any(&self) {
        let mut book = self.book();
        let restored = self.ledger().restore_if_any(Instant::now());
        if let Some(restored) = restored {
            let changes = book.restore(restored, wall());
            self.ledger().note_rules(changes);
            self.rules_wake.notify_one();
        }
    }

    /// Gives the store all there is.
    pub(crate) fn write_all(&self) {
        let book = self.book();
        let rules = book.all();
        self.ledger().write_all(&rules);
    }

    pub(crate) fn book(&self) -> MutexGuard<'_, Book> {
        lock(&self.book)
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
        mut verdict: Result<Verdict, Refusal>,
    ) -> Result<(), Refusal> {
        loop {
            match verdict? {
                Verdict::Known(stored) => {
                    self.stored_or_not(stored).await;
                    return Ok(());
                }
                Verdict::Arriving(mut arriving) => {
                    // Ends with an error, when the other has arrived or was refused.
                    while arriving.changed().await.is_ok() {}
                    verdict = self.ledger().admit(&job, redelivered, Instant::now());
                }
                Verdict::New { said } => {
                    let key = job.key.clone();
                    let accepted = self.accept(job, said).await;
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

    async fn accept(&self, mut job: NewJob, said: Vec<TokenId>) -> Result<(), Refusal> {
        let prompts = Arc::clone(&self.prompts);
        let messages = std::mem::take(&mut job.messages);
        let said_before = said.len();
        // Long prompts take the tokenizer long: not on a thread that others wait for.
        let encoded = tokio::task::spawn_blocking(move || {
            if said.is_empty() {
                return prompts.encode(&messages);
            }
            let mut prompt = said;
            prompt.extend(prompts.encode_continuation(&messages)?);
            Ok(prompt)
        })
        .await;
        let stored = {
            let mut ledger = self.ledger();
            let prompt = match encoded {
                Ok(Ok(prompt)) => prompt,
                Ok(Err(message)) => {
                    return Err(ledger.refuse(
                        ErrorCode::BadRequest,
                        format!("messages: the prompt can't be built: {message}"),
                    ));
                }
                Err(error) => {
                    tracing::error!(%error, "encoding a prompt panicked");
                    return Err(ledger.refuse(ErrorCode::Internal, "the prompt can't be encoded"));
                }
            };
            self.check_length(&mut ledger, prompt.len(), said_before)?;
            ledger.accept(job, prompt, Instant::now())?
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

    fn check_length(&self, ledger: &mut Ledger, prompt: usize, said_before: usize) -> Result<(), Refusal> {
        let context = self.engine.context_length;
        if prompt >= context {
            let mut message = phi_edge_engine::Failure::ContextOverflow { prompt, context }.to_string();
            if said_before > 0 {
                let _ = write!(
                    message,
                    "; {said_before} of them are what the session has said so far: begin a new one"
                );
            }
            return Err(ledger.refuse(ErrorCode::ContextOverflow, message));
        }
        let most = self.max_prompt_tokens.load(Ordering::Relaxed);
        if prompt > most {
            let message = format!("the prompt has {prompt} tokens, limits.max_prompt_tokens is {most}");
            return Err(ledger.refuse(ErrorCode::TooLarge, message));
        }
        Ok(())
    }

    /// Waits for messages that promise nothing: they leave even if they can't be stored.
    async fn stored_or_not(&self, stored: Option<Stored>) {
        let Some(stored) = stored else { return };
        let batch = stored.batch;
        if let Err(reason) = stored.wait().await {
            tracing::debug!(%reason, "a message leaves without being stored");
            self.ledger().leave_unstored(batch);
            self.wake.notify_one();
        }
    }

    pub(crate) fn ledger(&self) -> MutexGuard<'_, Ledger> {
        lock(&self.ledger)
    }

    /// Tells the world that the ledger has changed.
    fn changed(&self) {
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

/// A message of a rule on its way to the disk.
#[derive(Debug)]
pub struct Observed(Stored);

impl Observed {
    /// Waits until the message can't be lost any more, or can't be stored. May be called again if it was not waited for to
    /// the end.
    pub async fn wait(&mut self) {
        if let Err(reason) = self.0.ready().await {
            tracing::debug!(%reason, "a message of a rule is in memory alone");
        }
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
    Time(crate::store::wall_ms())
}

/// A panic while the lock was held is a bug that was reported; the ledger's own state is still the best
/// account of what was promised.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
