//! Who asked for what, and what became of it.
//!
//! The ledger decides and does nothing: no clock, no tasks, no channels to wait on. Each job that it
//! accepts gets exactly one outcome, for each address that asked for it.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::Duration;

use phi_edge_engine::{Finish, TokenId};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::job::{JobKey, NewJob, Priority, ReplyAddress};
use crate::pace::Pace;
use crate::reply::{Answer, ErrorCode, Refusal, Reply, ReplyBody};
use crate::runner::Ended;
use crate::sessions::Sessions;
use crate::stats::Stats;

/// How many addresses may wait for one outcome. A client that repeats itself has one; a few more serve one
/// that changes its response topic when it reconnects.
const ADDRESSES: usize = 4;

/// Waiting time that outweighs one step of priority.
const AGEING: Duration = Duration::from_secs(30);

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
}

/// What a request is to the ledger.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Not seen before: encode it and call [`Ledger::accept`].
    New,
    /// Its outcome was or will be sent.
    Known,
}

/// A job that gets a slot.
pub(crate) struct Start {
    pub(crate) job: NewJob,
    pub(crate) prompt: Vec<TokenId>,
    pub(crate) accepted: Instant,
    pub(crate) expires: Instant,
    /// Becomes true when the job is to end.
    pub(crate) stop: watch::Receiver<bool>,
}

struct Waiting {
    place: Place,
    job: NewJob,
    prompt: Vec<TokenId>,
    accepted: Instant,
    expires: Instant,
}

/// A place in the queue: who came first within a priority. [`Ledger::next_place`] chooses among priorities.
type Place = (Reverse<Priority>, u64);

enum State {
    Queued(Box<Waiting>),
    Running { stop: watch::Sender<bool> },
    Done(ReplyBody),
}

struct Entry {
    digest: [u8; 32],
    /// Who waits for the outcome.
    addresses: Vec<ReplyAddress>,
    /// The session that it has reserved.
    session: Option<String>,
    state: State,
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
    outgoing: VecDeque<Reply>,
    closed: Option<Closed>,
    sessions: Sessions,
    pace: Pace,
    places: u64,
    replies: u64,
    /// Makes reply ids differ between processes.
    boot: u64,
    served: u64,
    failed: u64,
    refused: u64,
}

impl Ledger {
    pub(crate) fn new(limits: Limits, boot: u64) -> Self {
        Self {
            sessions: Sessions::new(limits.session_ttl, limits.session_memory),
            limits,
            jobs: HashMap::new(),
            queue: BTreeMap::new(),
            running: 0,
            kept: VecDeque::new(),
            kept_bytes: 0,
            outgoing: VecDeque::new(),
            closed: None,
            pace: Pace::default(),
            places: 0,
            replies: 0,
            boot,
            served: 0,
            failed: 0,
            refused: 0,
        }
    }

    /// Looks at a request before the work of encoding it. `redelivered`: the broker sent it again, so that
    /// the client waits for nothing more than it already gets.
    pub(crate) fn admit(&mut self, job: &NewJob, redelivered: bool) -> Result<Verdict, Refusal> {
        if let Some(entry) = self.jobs.get_mut(&job.key) {
            if entry.digest != job.body_digest {
                return Err(self.refuse(
                    ErrorCode::BadRequest,
                    "id: in use by another request; give each request its own id",
                ));
            }
            if redelivered {
                return Ok(Verdict::Known);
            }
            return self.repeat(job);
        }
        if let Some(closed) = self.closed {
            return Err(self.refuse(ErrorCode::Unavailable, closed.message()));
        }
        if self.queue.len() >= self.limits.queue {
            return Err(self.busy(&format!("{} requests wait already", self.queue.len())));
        }
        if self.outgoing.len() >= self.limits.queue {
            let waiting = self.outgoing.len();
            return Err(self.busy(&format!("{waiting} replies wait to be sent")));
        }
        Ok(Verdict::New)
    }

    /// A client asks again for what it asked before: it gets the outcome once more, or waits for it.
    fn repeat(&mut self, job: &NewJob) -> Result<Verdict, Refusal> {
        let Some(entry) = self.jobs.get_mut(&job.key) else {
            return Ok(Verdict::New);
        };
        if let State::Done(body) = &entry.state {
            let copy = Reply {
                key: job.key.clone(),
                address: job.reply.clone(),
                body: body.clone(),
            };
            // One that has not left yet serves both.
            if !self.outgoing.contains(&copy) {
                if self.outgoing.len() >= self.limits.queue {
                    return Err(self.busy("replies wait to be sent"));
                }
                self.outgoing.push_back(copy);
            }
        } else if !entry.addresses.contains(&job.reply) {
            if entry.addresses.len() >= ADDRESSES {
                return Err(self.busy(&format!(
                    "{ADDRESSES} response topics wait for this request already"
                )));
            }
            entry.addresses.push(job.reply.clone());
        }
        tracing::debug!(
            job.id = job.key.id,
            job.client = job.key.client,
            "request repeated"
        );
        Ok(Verdict::Known)
    }

    /// Takes a job in. From here on it gets an outcome.
    pub(crate) fn accept(
        &mut self,
        job: NewJob,
        prompt: Vec<TokenId>,
        now: Instant,
    ) -> Result<Verdict, Refusal> {
        // The ledger was unlocked while the prompt was encoded: things may have changed.
        if self.admit(&job, false)? == Verdict::Known {
            return Ok(Verdict::Known);
        }
        let time = job
            .deadline
            .map_or(self.limits.max_deadline, |d| d.min(self.limits.max_deadline));
        if time.is_zero() {
            return Err(self.refuse(ErrorCode::Expired, "the deadline has passed already"));
        }
        tracing::info!(
            job.id = job.key.id,
            job.client = job.key.client,
            priority = ?job.priority,
            prompt_tokens = prompt.len(),
            max_tokens = job.max_tokens,
            ahead = self.queue.len() + self.running,
            "job accepted"
        );
        if let Some(session) = &job.session {
            self.sessions.asked(&job.key, session, &prompt);
        }
        let place = (Reverse(job.priority), self.places);
        self.places += 1;
        let key = job.key.clone();
        self.queue.insert(place, key.clone());
        let entry = Entry {
            digest: job.body_digest,
            addresses: vec![job.reply.clone()],
            session: job.session.clone(),
            state: State::Queued(Box::new(Waiting {
                place,
                prompt,
                accepted: now,
                expires: now + time,
                job,
            })),
        };
        self.jobs.insert(key, entry);
        Ok(Verdict::New)
    }

    /// What was said so far in the session that `job` names; from here on the session is the job's own, until the job
    /// ends or [`Ledger::release_session`] says that it was not accepted.
    pub(crate) fn begin_session(&mut self, job: &NewJob, now: Instant) -> Result<Vec<TokenId>, Refusal> {
        let Some(session) = &job.session else {
            return Ok(Vec::new());
        };
        match self.sessions.begin(&job.key, session, now) {
            Ok(said) => Ok(said),
            Err(occupied) => Err(self.busy(&format!(
                "session: request {:?} of {session:?} is not answered yet",
                occupied.by
            ))),
        }
    }

    /// Gives the session of a request back that was refused.
    pub(crate) fn release_session(&mut self, key: &JobKey, session: &str, now: Instant) {
        if !self.jobs.contains_key(key) {
            self.sessions.answered(key, session, None, now);
        }
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
        if self.closed.is_some() || self.running >= self.limits.slots {
            return None;
        }
        let place = self.next_place(now)?;
        let key = self.queue.remove(&place)?;
        let entry = self.jobs.get_mut(&key)?;
        let (stop, stopped) = watch::channel(false);
        let State::Queued(waiting) = std::mem::replace(&mut entry.state, State::Running { stop }) else {
            return None;
        };
        self.running += 1;
        Some(Start {
            job: waiting.job,
            prompt: waiting.prompt,
            accepted: waiting.accepted,
            expires: waiting.expires,
            stop: stopped,
        })
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
        let session = self.jobs.get(key).and_then(|entry| entry.session.as_deref());
        if let (Ended::Answered { summary, .. }, Some(session)) = (&ended, session) {
            self.sessions.answered(key, session, Some(&summary.tokens), now);
        }
        let body = match ended {
            Ended::Answered {
                text,
                finish,
                queued,
                summary,
            } => {
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
                })
            }
            Ended::Failed { code, message } => self.error(code, message),
        };
        self.settle(key, body, now);
    }

    /// Cancels a job. False if there is none of this name that still waits or runs.
    pub(crate) fn cancel(&mut self, key: &JobKey, now: Instant) -> bool {
        match self.jobs.get(key).map(|entry| &entry.state) {
            Some(State::Queued(_)) => {
                let body = self.error(ErrorCode::Cancelled, "cancelled before it started");
                self.settle(key, body, now);
                true
            }
            Some(State::Running { stop }) => {
                stop.send_replace(true);
                true
            }
            Some(State::Done(_)) | None => false,
        }
    }

    /// Ends what waited too long and forgets outcomes that were kept long enough.
    pub(crate) fn expire(&mut self, now: Instant) {
        for key in self.queued_where(|waiting| waiting.expires <= now) {
            let body = self.error(
                ErrorCode::Expired,
                "the deadline passed before the request's turn came",
            );
            self.settle(&key, body, now);
        }
        self.sessions.expire(now);
        while self.kept.front().is_some_and(|kept| kept.until <= now) {
            self.forget_oldest();
        }
    }

    /// When [`Ledger::expire`] has something to do next.
    pub(crate) fn next_expiry(&self) -> Option<Instant> {
        let queued = self
            .queue
            .values()
            .filter_map(|key| match self.jobs.get(key)?.state {
                State::Queued(ref waiting) => Some(waiting.expires),
                State::Running { .. } | State::Done(_) => None,
            });
        queued
            .chain(self.kept.front().map(|kept| kept.until))
            .chain(self.sessions.next_expiry())
            .min()
    }

    /// Accepts nothing more and ends what has not started. What runs goes on.
    pub(crate) fn close(&mut self, why: Closed, now: Instant) {
        // A lost engine stays lost while the service drains.
        self.closed.get_or_insert(why);
        for key in self.queued_where(|_| true) {
            let body = self.error(ErrorCode::Unavailable, why.message());
            self.settle(&key, body, now);
        }
    }

    /// Asks all running jobs to end.
    pub(crate) fn stop_running(&mut self) {
        for entry in self.jobs.values() {
            if let State::Running { stop } = &entry.state {
                stop.send_replace(true);
            }
        }
    }

    pub(crate) fn has_outgoing(&self) -> bool {
        !self.outgoing.is_empty()
    }

    /// The oldest outcome that has not left.
    pub(crate) fn take_outgoing(&mut self) -> Option<Reply> {
        self.outgoing.pop_front()
    }

    /// Nobody takes outcomes any more.
    pub(crate) fn discard_outgoing(&mut self) -> usize {
        let lost = self.outgoing.len();
        self.outgoing.clear();
        lost
    }

    pub(crate) fn stats(&self) -> Stats {
        Stats {
            queued: self.queue.len(),
            running: self.running,
            slots: self.limits.slots,
            tokens_per_s: self.pace.tokens_per_s(),
            served: self.served,
            failed: self.failed,
            refused: self.refused,
            outcomes_waiting: self.outgoing.len(),
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
    fn settle(&mut self, key: &JobKey, body: ReplyBody, now: Instant) {
        let Some(entry) = self.jobs.get_mut(key) else {
            return;
        };
        match &entry.state {
            State::Queued(waiting) => {
                self.queue.remove(&waiting.place);
            }
            State::Running { .. } => self.running -= 1,
            State::Done(_) => return,
        }
        if let Some(session) = entry.session.take() {
            // Already its own again after an answer: this is for those that have none.
            self.sessions.answered(key, &session, None, now);
        }
        let bytes = match &body {
            ReplyBody::Final(answer) => {
                self.served += 1;
                self.pace.observe(answer);
                log_answer(key, answer);
                answer.text.len()
            }
            ReplyBody::Error(refusal) => {
                self.failed += 1;
                tracing::info!(
                    job.id = key.id,
                    job.client = key.client,
                    code = refusal.code.as_str(),
                    error = refusal.message,
                    "job failed"
                );
                refusal.message.len()
            }
            ReplyBody::Chunk { .. } => 0,
        };
        for address in entry.addresses.drain(..) {
            self.outgoing.push_back(Reply {
                key: key.clone(),
                address,
                body: body.clone(),
            });
        }
        entry.state = State::Done(body);
        self.kept.push_back(Kept {
            key: key.clone(),
            until: now + self.limits.keep_for,
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
        }
    }
}

fn log_answer(key: &JobKey, answer: &Answer) {
    tracing::info!(
        job.id = key.id,
        job.client = key.client,
        finish_reason = ?answer.finish_reason,
        prompt_tokens = answer.prompt_tokens,
        completion_tokens = answer.completion_tokens,
        queued_ms = millis(answer.queued),
        prefill_ms = millis(answer.prefill),
        decode_ms = millis(answer.decode),
        "job answered"
    );
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
