//! Who asked for what, and what became of it.
//!
//! The ledger decides and does nothing: no clock, no tasks, no channels to wait on. Each job that it
//! accepts gets exactly one outcome, for each address that asked for it. What it decides is noted in the journal, in
//! order; outcomes leave once the journal is safe.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::Duration;

use phi_edge_engine::{Finish, TokenId};
use tokio::sync::{oneshot, watch};
use tokio::time::Instant;

use crate::job::{JobKey, NewJob, Priority, ReplyAddress};
use crate::journal::{Journal, Stored};
use crate::pace::Pace;
use crate::quota::{Quota, Quotas};
use crate::reply::{Answer, DeadLetter, ErrorCode, Refusal, Reply, ReplyBody};
use crate::rules::Published;
use crate::rules::record::{RestoredRules, RuleChange};
use crate::runner::Ended;
use crate::sessions::Sessions;
use crate::stats::Stats;
use crate::store::{Change, JobRecord, Restored, RestoredJob, RestoredState};
use crate::witness::{JobEnd, Outcome, Witnesses};

/// How many addresses may wait for one outcome. A client that repeats itself has one; a few more serve one
/// that changes its response topic when it reconnects.
const ADDRESSES: usize = 4;

/// Waiting time that outweighs one step of priority.
const AGEING: Duration = Duration::from_secs(30);

/// Crashes in which a job was alone, after which it is not tried again.
const CRASHES: u32 = 3;

/// Refused requests that are remembered for the broker's redeliveries: more than it has under way to us.
const REFUSED: usize = 256;

/// The client of what is asked within this process.
pub(crate) const INTERNAL: &str = "/rules";

/// Bounds of the ledger.
#[derive(Debug, Clone)]
pub(crate) struct Limits {
    pub(crate) slots: usize,
    pub(crate) queue: usize,
    pub(crate) max_deadline: Duration,
    pub(crate) keep_for: Duration,
    pub(crate) keep_outcomes: usize,
    pub(crate) keep_bytes: usize,
    pub(crate) session_ttl: Duration,
    pub(crate) session_memory: usize,
    pub(crate) quota: Quota,
    pub(crate) model: std::sync::Arc<str>,
    pub(crate) witnesses: Witnesses,
}

/// What a request is to the ledger.
#[derive(Debug)]
pub(crate) enum Verdict {
    /// Not seen before, and from here on arriving: encode it behind what its session has said so far, and call
    /// [`Ledger::accept`] or [`Ledger::abandon`].
    New { said: Vec<TokenId> },
    /// Its outcome was or will be sent, once this is stored.
    Known(Option<Stored>),
    /// The same request is just arriving: look again when this changes.
    Arriving(watch::Receiver<()>),
}

/// A job that gets a slot.
pub(crate) struct Start {
    pub(crate) job: NewJob,
    /// 1, and one more after each interruption.
    pub(crate) attempt: u32,
    pub(crate) prompt: Vec<TokenId>,
    pub(crate) accepted: Instant,
    pub(crate) expires: Instant,
    /// Becomes true when the job is to end.
    pub(crate) stop: watch::Receiver<bool>,
}

#[derive(Clone)]
struct Waiting {
    job: NewJob,
    prompt: Vec<TokenId>,
    accepted: Instant,
    expires: Instant,
}

/// A place in the queue: who came first within a priority. [`Ledger::next_place`] chooses among priorities.
type Place = (Reverse<Priority>, u64);

enum State {
    /// Not promised yet.
    Arriving {
        waiting: Option<Box<Waiting>>,
        cancelled: bool,
        /// Dropped when it has arrived or was abandoned.
        arrived: watch::Sender<()>,
    },
    Queued(Box<Waiting>),
    Running {
        stop: watch::Sender<bool>,
        waiting: Box<Waiting>,
        /// Stopped by us, not by its client: it goes on after a restart.
        paused: bool,
    },
    Done(ReplyBody, Instant),
}

struct Entry {
    place: Place,
    digest: [u8; 32],
    /// Who waits for the outcome.
    addresses: Vec<ReplyAddress>,
    /// The session that it has reserved.
    session: Option<String>,
    /// Starts so far.
    attempts: u32,
    /// It ran when the process crashed: it runs alone.
    suspect: bool,
    state: State,
}

impl Entry {
    fn waiting(&self) -> Option<&Waiting> {
        match &self.state {
            State::Arriving { waiting, .. } => waiting.as_deref(),
            State::Queued(waiting) | State::Running { waiting, .. } => Some(waiting),
            State::Done(..) => None,
        }
    }
}

/// A message that waits for its batch of the journal to be safe.
struct Outgoing {
    safe_with: u64,
    reply: Reply,
}

struct Kept {
    key: JobKey,
    until: Instant,
    bytes: usize,
}

/// Why nothing new is accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Closed {
    Draining,
    EngineLost,
}

impl Closed {
    fn message(self) -> &'static str {
        match self {
            Self::Draining => "the service is shutting down; send the request again later",
            Self::EngineLost => "the engine has stopped; send the request again later",
        }
    }
}

pub(crate) struct Ledger {
    limits: Limits,
    jobs: HashMap<JobKey, Entry>,
    queue: BTreeMap<Place, JobKey>,
    running: usize,
    /// Finished jobs, oldest first.
    kept: VecDeque<Kept>,
    kept_bytes: usize,
    outgoing: VecDeque<Outgoing>,
    /// Messages that the broker has not acknowledged, those in `outgoing` among them; only what is durable.
    undelivered: BTreeMap<u64, Reply>,
    deliveries: u64,
    /// Receipts of requests that were refused, oldest first.
    refusals: VecDeque<[u8; 32]>,
    arriving: usize,
    /// Queued jobs that ran when the process crashed.
    suspects: usize,
    /// The one that runs is such a job.
    alone: bool,
    closed: Option<Closed>,
    /// Who waits for an outcome within this process.
    listeners: HashMap<JobKey, oneshot::Sender<ReplyBody>>,
    sessions: Sessions,
    quotas: Quotas,
    pace: Pace,
    journal: Journal,
    places: u64,
    replies: u64,
    /// Makes reply ids differ between processes.
    boot: u64,
    served: u64,
    failed: u64,
    refused: u64,
}

impl Ledger {
    pub(crate) fn new(limits: Limits, boot: u64, journal: Journal) -> Self {
        Self {
            sessions: Sessions::new(limits.session_ttl, limits.session_memory),
            quotas: Quotas::new(limits.quota),
            limits,
            jobs: HashMap::new(),
            listeners: HashMap::new(),
            queue: BTreeMap::new(),
            running: 0,
            kept: VecDeque::new(),
            kept_bytes: 0,
            outgoing: VecDeque::new(),
            undelivered: BTreeMap::new(),
            deliveries: 0,
            refusals: VecDeque::new(),
            arriving: 0,
            suspects: 0,
            alone: false,
            closed: None,
            pace: Pace::default(),
            journal,
            places: 0,
            replies: 0,
            boot,
            served: 0,
            failed: 0,
            refused: 0,
        }
    }

    /// Other bounds, for what comes from now on.
    pub(crate) fn set_limits(&mut self, limits: Limits) {
        self.sessions
            .set_bounds(limits.session_ttl, limits.session_memory);
        self.quotas.set(limits.quota);
        self.limits = limits;
    }

    /// Looks at a request before the work of encoding it. `redelivered`: the broker sent it again, so that
    /// the client waits for nothing more than it already gets.
    pub(crate) fn admit(
        &mut self,
        job: &NewJob,
        redelivered: bool,
        now: Instant,
    ) -> Result<Verdict, Refusal> {
        if redelivered
            && job
                .receipt
                .is_some_and(|receipt| self.refusals.contains(&receipt))
        {
            return Ok(Verdict::Known(None));
        }
        if let Some(entry) = self.jobs.get(&job.key) {
            if entry.digest != job.body_digest {
                return Err(self.refuse(
                    ErrorCode::BadRequest,
                    "id: in use by another request; give each request its own id",
                ));
            }
            if let State::Arriving { arrived, .. } = &entry.state {
                return Ok(Verdict::Arriving(arrived.subscribe()));
            }
            if redelivered {
                return Ok(Verdict::Known(None));
            }
            return self.repeat(job);
        }
        self.let_in(job, now)?;
        let said = match &job.session {
            None => Vec::new(),
            Some(session) => match self.sessions.begin(&job.key, session, now) {
                Ok(said) => said,
                Err(occupied) => {
                    return Err(self.busy(&format!(
                        "session: request {:?} of {session:?} is not answered yet",
                        occupied.by
                    )));
                }
            },
        };
        let place = (Reverse(job.priority), self.places);
        self.places += 1;
        self.arriving += 1;
        let entry = Entry {
            place,
            digest: job.body_digest,
            addresses: vec![job.reply.clone()],
            session: job.session.clone(),
            attempts: 0,
            suspect: false,
            state: State::Arriving {
                waiting: None,
                cancelled: false,
                arrived: watch::Sender::new(()),
            },
        };
        self.jobs.insert(job.key.clone(), entry);
        Ok(Verdict::New { said })
    }

    /// Whether there is room for one more.
    fn let_in(&mut self, job: &NewJob, now: Instant) -> Result<(), Refusal> {
        if let Some(closed) = self.closed {
            return Err(self.refuse(ErrorCode::Unavailable, closed.message()));
        }
        if let Some(reason) = self.journal.failing() {
            return Err(self.refuse(
                ErrorCode::Unavailable,
                format!("requests can't be stored at present ({reason}); send it again later"),
            ));
        }
        let queued = self.queue.len() + self.arriving;
        if queued >= self.limits.queue {
            return Err(self.busy(&format!("{queued} requests wait already")));
        }
        if self.outgoing.len() >= self.limits.queue {
            let waiting = self.outgoing.len();
            return Err(self.busy(&format!("{waiting} replies wait to be sent")));
        }
        if let Some((bytes, most)) = self.journal.overfull() {
            return Err(self.busy(&format!(
                "the store holds {bytes} bytes, store.max_size is {most}"
            )));
        }
        if !is_internal(&job.key)
            && let Err((wait, which)) = self.quotas.enter(job.key.client.as_ref(), now)
        {
            return Err(Refusal {
                retry_after: Some(wait),
                ..self.refuse(
                    ErrorCode::Busy,
                    format!("this client's budget is used up ({which}); send the request again later"),
                )
            });
        }
        Ok(())
    }

    /// A client asks again for what it asked before: it gets the outcome once more, or waits for it.
    fn repeat(&mut self, job: &NewJob) -> Result<Verdict, Refusal> {
        let Some(entry) = self.jobs.get_mut(&job.key) else {
            return Ok(Verdict::Known(None));
        };
        if let State::Done(body, _) = &entry.state {
            let body = body.clone();
            // One that has not left yet serves both.
            let waits = |out: &Outgoing| {
                out.reply.key == job.key && out.reply.address == job.reply && out.reply.body == body
            };
            if !is_internal(&job.key) && !self.outgoing.iter().any(waits) {
                if self.outgoing.len() >= self.limits.queue {
                    return Err(self.busy("replies wait to be sent"));
                }
                self.send(job.key.clone(), job.reply.clone(), body);
            }
        } else if !entry.addresses.contains(&job.reply) {
            if entry.addresses.len() >= ADDRESSES {
                return Err(self.busy(&format!(
                    "{ADDRESSES} response topics wait for this request already"
                )));
            }
            entry.addresses.push(job.reply.clone());
            let addresses = entry.addresses.clone();
            let key = job.key.clone();
            self.journal.note(Change::Addresses { key, addresses });
        }
        tracing::debug!(
            job.id = job.key.id,
            job.client = job.key.client,
            "request repeated"
        );
        Ok(Verdict::Known(self.journal.send_and_wait()))
    }

    /// Takes a job in that is arriving. From when this is stored, and [`Ledger::arrived`] is called, it gets an outcome.
    pub(crate) fn accept(
        &mut self,
        job: NewJob,
        prompt: Vec<TokenId>,
        now: Instant,
    ) -> Result<Option<Stored>, Refusal> {
        // The ledger was unlocked while the prompt was encoded: things may have changed.
        if let Some(closed) = self.closed {
            return Err(self.refuse(ErrorCode::Unavailable, closed.message()));
        }
        let time = job
            .deadline
            .map_or(self.limits.max_deadline, |d| d.min(self.limits.max_deadline));
        if time.is_zero() {
            return Err(self.refuse(ErrorCode::Expired, "the deadline has passed already"));
        }
        let ahead = self.queue.len() + self.running;
        let Some(entry) = self.jobs.get_mut(&job.key) else {
            return Err(self.refuse(ErrorCode::Internal, "the request was lost on its way"));
        };
        let place = entry.place;
        let State::Arriving { waiting, .. } = &mut entry.state else {
            return Err(self.refuse(ErrorCode::Internal, "the request has arrived twice"));
        };
        tracing::info!(
            job.id = job.key.id,
            job.client = job.key.client,
            priority = ?job.priority,
            prompt_tokens = prompt.len(),
            max_tokens = job.max_tokens,
            ahead,
            trace_id = job.trace_id(),
            "job accepted"
        );
        if let Some(session) = &job.session {
            self.sessions.asked(&job.key, session, &prompt);
        }
        let new = Waiting {
            prompt,
            accepted: now,
            expires: now + time,
            job,
        };
        let record = record(&new, place, &self.journal);
        self.quotas
            .charge(new.job.key.client.as_ref(), promised(&new), now);
        *waiting = Some(Box::new(new));
        if self.journal.is_durable() {
            self.journal.note(Change::Accept(Box::new(record)));
        }
        Ok(self.journal.send_and_wait())
    }

    /// The accepted job is stored: it takes its place in the queue.
    pub(crate) fn arrived(&mut self, key: &JobKey, now: Instant) {
        let Some(entry) = self.jobs.get_mut(key) else {
            return;
        };
        let place = entry.place;
        let State::Arriving {
            waiting, cancelled, ..
        } = &mut entry.state
        else {
            return;
        };
        let (Some(waiting), cancelled) = (waiting.take(), *cancelled) else {
            return;
        };
        entry.state = State::Queued(waiting);
        self.arriving -= 1;
        self.queue.insert(place, key.clone());
        if cancelled {
            self.cancel(key, now);
        }
        self.journal.send();
    }

    /// What was arriving is not accepted.
    pub(crate) fn abandon(&mut self, key: &JobKey, now: Instant) {
        if !matches!(
            self.jobs.get(key),
            Some(Entry {
                state: State::Arriving { .. },
                ..
            })
        ) {
            return;
        }
        self.arriving -= 1;
        let Some(entry) = self.jobs.remove(key) else {
            return;
        };
        if let Some(waiting) = entry.waiting() {
            self.quotas.charge(key.client.as_ref(), -promised(waiting), now);
        }
        if let Some(session) = &entry.session {
            self.sessions.answered(key, session, None, now);
        }
    }

    /// Sends what is no job's outcome: a refusal, a dead letter. It leaves when this is stored; `receipt` is remembered
    /// for the broker's redelivery of the request.
    pub(crate) fn post(
        &mut self,
        key: JobKey,
        address: ReplyAddress,
        body: ReplyBody,
        receipt: Option<[u8; 32]>,
    ) -> Option<Stored> {
        if let Some(receipt) = receipt {
            self.remember_refusal(receipt);
            self.journal.note(Change::Refused { receipt });
        }
        self.send(key, address, body);
        self.journal.send_and_wait()
    }

    /// The store did not take a batch of messages that promise nothing: they leave without.
    pub(crate) fn leave_unstored(&mut self, batch: u64) {
        for out in &mut self.outgoing {
            if out.safe_with == batch {
                out.safe_with = 0;
            }
        }
    }

    /// Whether a request that the broker delivers again was refused before.
    pub(crate) fn was_refused(&self, receipt: &[u8; 32]) -> bool {
        self.refusals.contains(receipt)
    }

    /// Whether there is a job of this name.
    pub(crate) fn knows(&self, key: &JobKey) -> bool {
        self.jobs.contains_key(key)
    }

    /// The broker has acknowledged a message.
    pub(crate) fn delivered(&mut self, delivery: u64) {
        if self.undelivered.remove(&delivery).is_some() {
            self.journal.note(Change::Delivered(delivery));
            self.journal.send();
        }
    }

    /// Whoever asks within this process gets the outcome of `key` here, at once if there is one.
    pub(crate) fn listen(&mut self, key: &JobKey, listener: oneshot::Sender<ReplyBody>) {
        if let Some(State::Done(body, _)) = self.jobs.get(key).map(|entry| &entry.state) {
            // An error: nobody waits any more.
            let _ = listener.send(body.clone());
        } else {
            self.listeners.insert(key.clone(), listener);
        }
    }

    /// Nobody waits for this outcome any more.
    pub(crate) fn unlisten(&mut self, key: &JobKey) {
        self.listeners.remove(key);
    }

    /// Writes down what the rules have decided.
    pub(crate) fn note_rules(&mut self, changes: Vec<RuleChange>) -> Option<Stored> {
        for change in changes {
            self.journal.note(Change::Rule(change));
        }
        self.journal.send_and_wait()
    }

    /// Puts an event among the messages that leave; the jobs that worded it are forgotten. All of it is stored together.
    pub(crate) fn publish_event(&mut self, published: Published, change: RuleChange, jobs: &[JobKey]) {
        let key = JobKey {
            client: None,
            id: published.event.event_id.clone(),
        };
        let address = ReplyAddress {
            topic: published.output.topic.clone(),
            correlation: None,
            traceparent: None,
        };
        self.send(key, address, ReplyBody::Event(Box::new(published)));
        self.journal.note(Change::Rule(change));
        for key in jobs {
            self.forget(key);
        }
        self.journal.send();
    }

    /// Why nothing new can be stored, if so.
    pub(crate) fn store_failing(&self) -> Option<String> {
        self.journal.failing()
    }

    fn forget(&mut self, key: &JobKey) {
        if let Some(place) = self.kept.iter().position(|kept| kept.key == *key)
            && let Some(kept) = self.kept.remove(place)
        {
            self.kept_bytes -= kept.bytes;
            self.jobs.remove(key);
            self.journal.note(Change::Forget(kept.key));
        }
    }

    fn remember_refusal(&mut self, receipt: [u8; 32]) {
        if self.refusals.len() >= REFUSED {
            self.refusals.pop_front();
        }
        self.refusals.push_back(receipt);
    }

    /// Puts a message among those that leave, and in the journal.
    fn send(&mut self, key: JobKey, address: ReplyAddress, body: ReplyBody) {
        let delivery = self.journal.is_durable().then(|| {
            self.deliveries += 1;
            self.deliveries
        });
        let reply = Reply {
            key,
            address,
            body,
            delivery,
        };
        let mut safe_with = 0;
        if let Some(delivery) = delivery {
            safe_with = self.journal.number();
            self.journal.note(Change::Post(Box::new(reply.clone())));
            self.undelivered.insert(delivery, reply.clone());
        }
        self.outgoing.push_back(Outgoing { safe_with, reply });
    }

    /// Takes over what an earlier process left of requests and outcomes.
    fn restore(&mut self, restored: Restored, now: Instant) -> RestoredRules {
        let Restored {
            jobs,
            outbox,
            refused,
            rules,
        } = restored;
        tracing::info!(
            open = jobs
                .iter()
                .filter(|job| matches!(job.state, RestoredState::Open { .. }))
                .count(),
            outcomes = jobs
                .iter()
                .filter(|job| matches!(job.state, RestoredState::Done { .. }))
                .count(),
            undelivered = outbox.len(),
            "the store is read"
        );
        // Before any of our own.
        self.deliveries = self.deliveries.max(
            outbox
                .iter()
                .filter_map(|reply| reply.delivery)
                .max()
                .unwrap_or(0),
        );
        for reply in outbox.into_iter().rev() {
            if let Some(delivery) = reply.delivery {
                self.undelivered.insert(delivery, reply.clone());
            }
            self.outgoing.push_front(Outgoing { safe_with: 0, reply });
        }
        for receipt in refused {
            self.remember_refusal(receipt);
        }
        for job in jobs {
            self.restore_job(job, now);
        }
        self.journal.send();
        rules
    }

    fn restore_job(&mut self, restored: RestoredJob, now: Instant) {
        let RestoredJob {
            record,
            addresses,
            attempts,
            crashes,
            state,
        } = restored;
        self.places = self.places.max(record.place.saturating_add(1));
        let key = record.job.key.clone();
        if self.jobs.contains_key(&key) {
            return;
        }
        let place = (Reverse(record.job.priority), record.place);
        let suspect = matches!(state, RestoredState::Open { suspect: true });
        let digest = record.job.body_digest;
        let entry = |session, state| Entry {
            place,
            digest,
            addresses,
            session,
            attempts,
            suspect,
            state,
        };
        match state {
            RestoredState::Done { body, until_up_ms } => {
                let until = now + self.journal.left(until_up_ms);
                let bytes = size(&body);
                self.jobs
                    .insert(key.clone(), entry(None, State::Done(body, until)));
                self.kept.push_back(Kept { key, until, bytes });
                self.kept_bytes += bytes;
            }
            RestoredState::Open { .. } => {
                let expires = now + self.journal.left(record.expires.up_ms);
                let session = record.job.session.clone().filter(|session| {
                    let free = self.sessions.begin(&key, session, now).is_ok();
                    self.sessions.asked(&key, session, &record.prompt);
                    free
                });
                let waiting = Waiting {
                    prompt: record.prompt,
                    accepted: now,
                    expires,
                    job: record.job,
                };
                let entry = entry(session, State::Queued(Box::new(waiting)));
                self.queue.insert(place, key.clone());
                self.suspects += usize::from(suspect);
                self.jobs.insert(key.clone(), entry);
                if crashes >= CRASHES {
                    self.give_up(&key, crashes, now);
                }
            }
        }
    }

    /// A job that was alone at so many crashes is taken to be their cause.
    fn give_up(&mut self, key: &JobKey, crashes: u32, now: Instant) {
        let message = format!(
            "the service crashed {crashes} times while it worked on this request alone; it is not tried again"
        );
        tracing::error!(
            job.id = key.id,
            job.client = key.client,
            crashes,
            "a job is given up"
        );
        let letter = DeadLetter {
            reason: ErrorCode::Internal.as_str().to_owned(),
            message: message.clone(),
            topic: String::new(),
            id: Some(key.id.clone()),
            payload: Vec::new(),
        };
        self.send(
            key.clone(),
            ReplyAddress::nowhere(),
            ReplyBody::DeadLetter(letter),
        );
        let body = self.error(ErrorCode::Internal, message);
        self.settle(key, &body, now);
    }

    /// Writes everything that is to be kept anew, for a store that has missed something.
    pub(crate) fn write_all(&mut self, rules: &RestoredRules) {
        let mut all: Vec<Change> = rules.changes().into_iter().map(Change::Rule).collect();
        for (key, entry) in &self.jobs {
            let key = key.clone();
            match (&entry.state, entry.waiting()) {
                (State::Arriving { .. }, _) => {}
                (State::Done(body, until), _) => {
                    let record = outcome_record(&key, entry, *until, &self.journal);
                    all.push(Change::Accept(Box::new(record)));
                    all.push(Change::Settle {
                        key,
                        body: Box::new(body.clone()),
                        until: self.journal.moment(*until),
                    });
                }
                (state, Some(waiting)) => {
                    let record = record(waiting, entry.place, &self.journal);
                    all.push(Change::Accept(Box::new(record)));
                    let addresses = entry.addresses.clone();
                    all.push(Change::Addresses {
                        key: key.clone(),
                        addresses,
                    });
                    if matches!(state, State::Running { .. }) {
                        let attempt = entry.attempts;
                        all.push(Change::Start { key, attempt });
                    }
                }
                (_, None) => {}
            }
        }
        all.extend(
            self.undelivered
                .values()
                .map(|reply| Change::Post(Box::new(reply.clone()))),
        );
        all.extend(
            self.refusals
                .iter()
                .map(|receipt| Change::Refused { receipt: *receipt }),
        );
        self.journal.replace(all);
    }

    /// Makes a refusal.
    pub(crate) fn refuse(&mut self, code: ErrorCode, message: impl Into<String>) -> Refusal {
        self.refused += 1;
        Refusal {
            reply_id: self.reply_id(),
            code,
            message: message.into(),
            retry_after: None,
        }
    }

    fn busy(&mut self, why: &str) -> Refusal {
        let retry_after =
            self.pace
                .retry_after(self.queue.len(), self.limits.slots, self.limits.max_deadline);
        Refusal {
            retry_after: Some(retry_after),
            ..self.refuse(ErrorCode::Busy, format!("{why}; send the request again later"))
        }
    }

    /// The next job, if there is a slot for it.
    pub(crate) fn start_next(&mut self, now: Instant) -> Option<Start> {
        self.expire(now);
        if self.closed.is_some() || self.running >= self.limits.slots || self.alone {
            return None;
        }
        let suspect = self.next_suspect();
        if suspect.is_some() && self.running > 0 {
            return None;
        }
        let place = suspect.or_else(|| self.next_place(now))?;
        let key = self.queue.remove(&place)?;
        let entry = self.jobs.get_mut(&key)?;
        let (stop, stopped) = watch::channel(false);
        let State::Queued(waiting) = &entry.state else {
            return None;
        };
        let waiting = waiting.clone();
        entry.attempts += 1;
        let start = Start {
            job: waiting.job.clone(),
            attempt: entry.attempts,
            prompt: waiting.prompt.clone(),
            accepted: waiting.accepted,
            expires: waiting.expires,
            stop: stopped,
        };
        entry.state = State::Running {
            stop,
            waiting,
            paused: false,
        };
        if entry.suspect {
            self.suspects -= 1;
            self.alone = true;
        }
        self.running += 1;
        let attempt = start.attempt;
        self.journal.note(Change::Start { key, attempt });
        self.journal.send();
        Some(start)
    }

    /// What ran when the process crashed runs first, each alone: then a crash tells which it was.
    fn next_suspect(&self) -> Option<Place> {
        if self.suspects == 0 {
            return None;
        }
        let suspect = |key: &JobKey| self.jobs.get(key).is_some_and(|entry| entry.suspect);
        self.queue
            .iter()
            .find(|(_, key)| suspect(key))
            .map(|(place, _)| *place)
    }

    /// The place in the queue that is served next: the highest priority, where waiting counts for as much as a
    /// higher one every [`AGEING`], so that nobody waits for ever behind those who may go first.
    fn next_place(&self, now: Instant) -> Option<Place> {
        let heads = [Priority::Interactive, Priority::Normal, Priority::Background].map(|priority| {
            let class = (Reverse(priority), 0)..=(Reverse(priority), u64::MAX);
            let (place, key) = self.queue.range(class).next()?;
            let State::Queued(waiting) = &self.jobs.get(key)?.state else {
                return None;
            };
            let waited = now.saturating_duration_since(waiting.accepted);
            let rank = u128::from(priority as u8) * AGEING.as_millis() + waited.as_millis();
            Some((rank, Reverse(place.1), *place))
        });
        heads.into_iter().flatten().max().map(|(_, _, place)| place)
    }

    /// The end of a job that [`Ledger::start_next`] gave out.
    pub(crate) fn ended(&mut self, key: &JobKey, ended: Ended, now: Instant) {
        if self.is_interrupted(key, &ended) {
            self.pause(key);
            return;
        }
        let session = self.jobs.get(key).and_then(|entry| entry.session.as_deref());
        if let (Ended::Answered { summary, .. }, Some(session)) = (&ended, session) {
            self.sessions.answered(key, session, Some(&summary.tokens), now);
        }
        let mut guesses = (0, 0);
        let body = match ended {
            Ended::Answered {
                text,
                finish,
                queued,
                summary,
            } => {
                guesses = (summary.guessed, summary.guessed_right);
                if summary.finish == Finish::Repetition {
                    tracing::warn!(
                        job.id = key.id,
                        completion_tokens = summary.tokens.len(),
                        "answer stopped: its text went round in circles"
                    );
                }
                ReplyBody::Final(Answer {
                    reply_id: self.reply_id(),
                    text,
                    finish_reason: finish,
                    prompt_tokens: summary.prompt_tokens,
                    completion_tokens: summary.tokens.len(),
                    cached_tokens: summary.cached_tokens,
                    queued,
                    prefill: summary.prefill,
                    decode: summary.decode,
                    model: std::sync::Arc::clone(&self.limits.model),
                })
            }
            Ended::Failed { code, message } => self.error(code, message),
            Ended::Lost => self.error(ErrorCode::Unavailable, Closed::EngineLost.message()),
        };
        self.settle_with(key, &body, guesses, now);
        self.journal.send();
    }

    /// Whether the job ended only because the process does: then it is stored and goes on in the next.
    fn is_interrupted(&self, key: &JobKey, ended: &Ended) -> bool {
        let Some(State::Running { paused, .. }) = self.jobs.get(key).map(|entry| &entry.state) else {
            return false;
        };
        let interrupted = match ended {
            Ended::Lost => true,
            Ended::Answered { summary, .. } => *paused && summary.finish == Finish::Cancelled,
            Ended::Failed { code, .. } => *paused && *code == ErrorCode::Unavailable,
        };
        self.journal.is_durable() && interrupted
    }

    /// Gives the slot back and keeps the job for the next process.
    fn pause(&mut self, key: &JobKey) {
        let Some(entry) = self.jobs.get_mut(key) else {
            return;
        };
        let State::Running { waiting, paused, .. } = &entry.state else {
            return;
        };
        // A crash is to be seen as one: then the job stays marked as running.
        if *paused {
            self.journal.note(Change::Pause { key: key.clone() });
        }
        entry.state = State::Queued(waiting.clone());
        self.queue.insert(entry.place, key.clone());
        self.running -= 1;
        self.alone = false;
        if entry.suspect {
            self.suspects += 1;
        }
        tracing::info!(
            job.id = key.id,
            job.client = key.client,
            "job kept for the next start"
        );
        self.journal.send();
    }

    /// Cancels a job. False if there is none of this name that still waits or runs.
    pub(crate) fn cancel(&mut self, key: &JobKey, now: Instant) -> bool {
        match self.jobs.get_mut(key).map(|entry| &mut entry.state) {
            Some(State::Arriving { cancelled, .. }) => {
                *cancelled = true;
                true
            }
            Some(State::Queued(_)) => {
                let body = self.error(ErrorCode::Cancelled, "cancelled before it started");
                self.settle(key, &body, now);
                self.journal.send();
                true
            }
            Some(State::Running { stop, .. }) => {
                stop.send_replace(true);
                true
            }
            Some(State::Done(..)) | None => false,
        }
    }

    /// Ends what waited too long and forgets outcomes that were kept long enough.
    pub(crate) fn expire(&mut self, now: Instant) {
        for key in self.queued_where(|waiting| waiting.expires <= now) {
            let body = self.error(
                ErrorCode::Expired,
                "the deadline passed before the request's turn came",
            );
            self.settle(&key, &body, now);
        }
        self.sessions.expire(now);
        while self.kept.front().is_some_and(|kept| kept.until <= now) {
            self.forget_oldest();
        }
        self.journal.send();
    }

    /// When [`Ledger::expire`] has something to do next.
    pub(crate) fn next_expiry(&self) -> Option<Instant> {
        let queued = self
            .queue
            .values()
            .filter_map(|key| match self.jobs.get(key)?.state {
                State::Queued(ref waiting) => Some(waiting.expires),
                State::Arriving { .. } | State::Running { .. } | State::Done(..) => None,
            });
        queued
            .chain(self.kept.front().map(|kept| kept.until))
            .chain(self.sessions.next_expiry())
            .min()
    }

    /// Accepts nothing more. What runs goes on; what has not started is kept for the next process where anything
    /// outlives this one, and ends where not.
    pub(crate) fn close(&mut self, why: Closed, now: Instant) {
        // A lost engine stays lost while the service drains.
        self.closed.get_or_insert(why);
        if self.journal.is_durable() {
            return;
        }
        for key in self.queued_where(|_| true) {
            let body = self.error(ErrorCode::Unavailable, why.message());
            self.settle(&key, &body, now);
        }
    }

    /// Asks all running jobs to end.
    pub(crate) fn stop_running(&mut self) {
        for entry in self.jobs.values_mut() {
            if let State::Running { stop, paused, .. } = &mut entry.state {
                // One that its client has taken back ends for good.
                *paused = !*stop.borrow();
                stop.send_replace(true);
            }
        }
    }

    /// Whether a message may leave.
    pub(crate) fn has_outgoing(&self) -> bool {
        self.next_outgoing().is_some()
    }

    /// The oldest message that may leave and has not.
    pub(crate) fn take_outgoing(&mut self) -> Option<Reply> {
        let next = self.next_outgoing()?;
        self.outgoing.remove(next).map(|out| out.reply)
    }

    /// Nearly always the first. While the store fails, outcomes wait and refusals pass them.
    fn next_outgoing(&self) -> Option<usize> {
        let committed = self.journal.committed();
        self.outgoing.iter().position(|out| out.safe_with <= committed)
    }

    /// Nobody takes outcomes any more.
    pub(crate) fn discard_outgoing(&mut self) -> usize {
        let lost = self.outgoing.len();
        self.outgoing.clear();
        lost
    }

    /// Reads what an earlier process left, if it has just become readable; gives what rules need of it.
    pub(crate) fn restore_if_any(&mut self, now: Instant) -> Option<RestoredRules> {
        let restored = self.journal.take_restored()?;
        Some(self.restore(restored, now))
    }

    /// Takes the store out: what is decided from here on is not kept.
    pub(crate) fn close_store(&mut self) -> Journal {
        std::mem::replace(&mut self.journal, Journal::new(None))
    }

    pub(crate) fn stats(&self) -> Stats {
        Stats {
            queued: self.queue.len(),
            running: self.running,
            slots: self.limits.slots,
            tokens_per_s: self.pace.tokens_per_s(),
            first_token: self.pace.first_token(),
            served: self.served,
            failed: self.failed,
            refused: self.refused,
            outcomes_waiting: self.outgoing.len(),
            undelivered: self.undelivered.len(),
        }
    }

    fn queued_where(&self, wanted: impl Fn(&Waiting) -> bool) -> Vec<JobKey> {
        let wanted = |key: &&JobKey| match self.jobs.get(*key).map(|entry| &entry.state) {
            Some(State::Queued(waiting)) => wanted(waiting),
            _ => false,
        };
        self.queue.values().filter(wanted).cloned().collect()
    }

    fn error(&mut self, code: ErrorCode, message: impl Into<String>) -> ReplyBody {
        ReplyBody::Error(Refusal {
            reply_id: self.reply_id(),
            code,
            message: message.into(),
            retry_after: None,
        })
    }

    fn reply_id(&mut self) -> String {
        self.replies += 1;
        format!("{:016x}-{}", self.boot, self.replies)
    }

    /// Gives a job its outcome. One that has its outcome keeps it.
    fn settle(&mut self, key: &JobKey, body: &ReplyBody, now: Instant) {
        self.settle_with(key, body, (0, 0), now);
    }

    /// As [`Ledger::settle`]; of `guesses`, all and those that were right, the witnesses are told.
    fn settle_with(&mut self, key: &JobKey, body: &ReplyBody, guesses: (usize, usize), now: Instant) {
        let Some(entry) = self.jobs.get_mut(key) else {
            return;
        };
        let until = match &entry.state {
            State::Arriving { .. } | State::Done(..) => return,
            State::Queued(waiting) => {
                self.queue.remove(&entry.place);
                self.suspects -= usize::from(entry.suspect);
                waiting.expires
            }
            State::Running { waiting, .. } => {
                self.running -= 1;
                self.alone = false;
                waiting.expires
            }
        };
        if let Some(waiting) = entry.waiting() {
            tell(
                &self.limits.witnesses,
                entry.attempts,
                waiting,
                body,
                guesses,
                now,
            );
            let used = match body {
                ReplyBody::Final(answer) => answer.prompt_tokens + answer.completion_tokens,
                _ => 0,
            };
            let rest = promised(waiting) - i64::try_from(used).unwrap_or(i64::MAX);
            self.quotas.charge(key.client.as_ref(), -rest, now);
        }
        if let Some(session) = entry.session.take() {
            // Already its own again after an answer: this is for those that have none.
            self.sessions.answered(key, &session, None, now);
        }
        match body {
            ReplyBody::Final(answer) => {
                self.served += 1;
                self.pace.observe(answer);
                log_answer(key, answer, entry.waiting());
            }
            ReplyBody::Error(refusal) => {
                self.failed += 1;
                tracing::info!(
                    job.id = key.id,
                    job.client = key.client,
                    code = refusal.code.as_str(),
                    error = refusal.message,
                    trace_id = entry.waiting().and_then(|waiting| waiting.job.trace_id()),
                    "job failed"
                );
            }
            ReplyBody::Chunk { .. } | ReplyBody::DeadLetter(_) | ReplyBody::Event(_) => {}
        }
        let bytes = size(body);
        let addresses = std::mem::take(&mut entry.addresses);
        // Until its deadline a repeat is answered with the same.
        let until = until.max(now + self.limits.keep_for);
        entry.state = State::Done(body.clone(), until);
        if self.journal.is_durable() {
            self.journal.note(Change::Settle {
                key: key.clone(),
                body: Box::new(body.clone()),
                until: self.journal.moment(until),
            });
        }
        for address in addresses {
            // What was asked within this process is sent nowhere.
            if !is_internal(key) {
                self.send(key.clone(), address, body.clone());
            }
        }
        if let Some(listener) = self.listeners.remove(key) {
            // An error: whoever asked has left.
            let _ = listener.send(body.clone());
        }
        self.kept.push_back(Kept {
            key: key.clone(),
            until,
            bytes,
        });
        self.kept_bytes += bytes;
        while self.kept.len() > self.limits.keep_outcomes || self.kept_bytes > self.limits.keep_bytes {
            self.forget_oldest();
        }
    }

    fn forget_oldest(&mut self) {
        if let Some(kept) = self.kept.pop_front() {
            self.kept_bytes -= kept.bytes;
            self.jobs.remove(&kept.key);
            self.journal.note(Change::Forget(kept.key));
        }
    }
}

/// Whether a job was asked for within this process: no client's name holds a slash.
fn is_internal(key: &JobKey) -> bool {
    key.client.as_deref() == Some(INTERNAL)
}

/// Bytes of text of an outcome.
fn size(body: &ReplyBody) -> usize {
    match body {
        ReplyBody::Final(answer) => answer.text.len(),
        ReplyBody::Error(refusal) => refusal.message.len(),
        ReplyBody::Chunk { .. } | ReplyBody::DeadLetter(_) | ReplyBody::Event(_) => 0,
    }
}

/// Tokens that a job may come to.
fn promised(waiting: &Waiting) -> i64 {
    i64::try_from(waiting.prompt.len() + waiting.job.max_tokens).unwrap_or(i64::MAX)
}

fn record(waiting: &Waiting, place: Place, journal: &Journal) -> JobRecord {
    JobRecord {
        job: NewJob {
            messages: Vec::new(),
            ..waiting.job.clone()
        },
        prompt: waiting.prompt.clone(),
        place: place.1,
        accepted: journal.moment(waiting.accepted),
        expires: journal.moment(waiting.expires),
    }
}

/// The row of a job of which only the outcome is left.
fn outcome_record(key: &JobKey, entry: &Entry, until: Instant, journal: &Journal) -> JobRecord {
    JobRecord {
        job: NewJob {
            key: key.clone(),
            body_digest: entry.digest,
            messages: Vec::new(),
            max_tokens: 0,
            sampling: phi_edge_engine::Sampling::default(),
            stop: Vec::new(),
            stream: false,
            priority: Priority::Normal,
            deadline: None,
            session: None,
            reply: ReplyAddress::nowhere(),
            payload_bytes: None,
            receipt: None,
        },
        prompt: Vec::new(),
        place: entry.place.1,
        accepted: journal.moment(Instant::now()),
        expires: journal.moment(until),
    }
}

/// Tells the witnesses of a job's end.
fn tell(
    witnesses: &Witnesses,
    attempts: u32,
    waiting: &Waiting,
    body: &ReplyBody,
    guesses: (usize, usize),
    now: Instant,
) {
    let outcome = match body {
        ReplyBody::Final(answer) => Outcome::Answered {
            answer,
            guessed: guesses.0,
            guessed_right: guesses.1,
        },
        ReplyBody::Error(refusal) => Outcome::Failed(refusal),
        ReplyBody::Chunk { .. } | ReplyBody::DeadLetter(_) | ReplyBody::Event(_) => return,
    };
    let end = JobEnd {
        job: &waiting.job,
        prompt: &waiting.prompt,
        internal: is_internal(&waiting.job.key),
        attempts,
        took: now.saturating_duration_since(waiting.accepted),
        outcome,
    };
    witnesses.tell(|witness| witness.ended(&end));
}

fn log_answer(key: &JobKey, answer: &Answer, waiting: Option<&Waiting>) {
    tracing::info!(
        job.id = key.id,
        job.client = key.client,
        finish_reason = ?answer.finish_reason,
        prompt_tokens = answer.prompt_tokens,
        completion_tokens = answer.completion_tokens,
        queued_ms = millis(answer.queued),
        prefill_ms = millis(answer.prefill),
        decode_ms = millis(answer.decode),
        trace_id = waiting.and_then(|waiting| waiting.job.trace_id()),
        "job answered"
    );
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
