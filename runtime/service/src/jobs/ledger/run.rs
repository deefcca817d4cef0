//! Whose turn it is, and the ways in which a job ends.

use std::cmp::Reverse;

use phi_edge_engine::Finish;
use tokio::sync::watch;
use tokio::time::Instant;

use super::{AGEING_INTERVAL, Closed, Ledger, Place, Start, State, Waiting};
use crate::jobs::runner::Ended;
use phi_edge_api::{Answer, ReplyBody};
use phi_edge_api::{JobKey, Priority};
use phi_edge_job::ErrorCode;
use phi_edge_store::Change;

impl Ledger {
    /// The next job, if there are a slot and memory for it. What does not fit waits here and is not overtaken by what ranks
    /// below it; what comes to rank above it goes first.
    pub(crate) fn start_next(&mut self, now: Instant) -> Option<Start> {
        self.expire(now);
        if self.closed.is_some() || self.running >= self.limits.slots || self.suspect_running {
            return None;
        }
        let suspect = self.next_suspect();
        if suspect.is_some() && self.running > 0 {
            return None;
        }
        let place = suspect.or_else(|| self.next_place(now))?;
        let waiting = self.jobs.get(self.queue.get(&place)?)?.waiting()?;
        let promised = waiting.promised(self.limits.context);
        if self.running > 0 && self.promised + promised > self.limits.memory {
            return None;
        }
        let key = self.queue.remove(&place)?;
        self.shares.leave(&key.client);
        self.shares.started(&key.client, promised);
        let entry = self.jobs.get_mut(&key)?;
        let (stop, stopped) = watch::channel(false);
        let State::Queued(waiting) = &entry.state else {
            return None;
        };
        let waiting = waiting.clone();
        entry.tries.attempts += 1;
        let start = Start {
            job: waiting.job.clone(),
            attempt: entry.tries.attempts,
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
        if entry.tries.suspect {
            self.suspects -= 1;
            self.suspect_running = true;
        }
        self.running += 1;
        self.promised += promised;
        let attempt = start.attempt;
        self.journal.note(Change::Start { key, attempt });
        self.journal.send();
        Some(start)
    }

    /// What ran when the process crashed runs first, each alone: then a crash tells which it was.
    pub(super) fn next_suspect(&self) -> Option<Place> {
        if self.suspects == 0 {
            return None;
        }
        let suspect = |key: &JobKey| self.jobs.get(key).is_some_and(|entry| entry.tries.suspect);
        self.queue
            .iter()
            .find(|(_, key)| suspect(key))
            .map(|(place, _)| *place)
    }

    /// The place in the queue that is served next: of the highest priority, where waiting counts for as much as a
    /// higher one every [`AGEING_INTERVAL`], so that nobody waits for ever behind those who may go first; and within it that of the
    /// client that was served least.
    pub(super) fn next_place(&self, now: Instant) -> Option<Place> {
        let heads = [Priority::Interactive, Priority::Normal, Priority::Background].map(|priority| {
            let (place, key) = self.queue.range(class(priority)).next()?;
            let State::Queued(waiting) = &self.jobs.get(key)?.state else {
                return None;
            };
            let waited = now.saturating_duration_since(waiting.accepted);
            let rank = u128::from(priority as u8) * AGEING_INTERVAL.as_millis() + waited.as_millis();
            Some((rank, Reverse(place.1), priority))
        });
        let (.., priority) = heads.into_iter().flatten().max()?;
        let waiting = self.queue.range(class(priority));
        // Of equal tags the first: it came first.
        let fair = waiting.min_by_key(|(_, key)| self.shares.tag(&key.client));
        fair.map(|(place, _)| *place)
    }

    /// The end of a job that [`Ledger::start_next`] gave out.
    pub(crate) fn ended(&mut self, key: &JobKey, ended: Ended, now: Instant) {
        if self.is_interrupted(key, &ended) {
            self.pause(key);
            return;
        }
        let session = self.jobs.get(key).and_then(|entry| entry.session.as_deref());
        if let (Ended::Answered { summary, seen, .. }, Some(session)) = (&ended, session) {
            let answer = seen.as_ref().unwrap_or(&summary.tokens);
            self.accounts.record_answer(key, session, answer, now);
        }
        let mut guesses = (0, 0);
        let body = match ended {
            Ended::Answered {
                text,
                finish,
                queued,
                summary,
                seen: _,
            } => {
                guesses = (summary.draft_tokens, summary.accepted_draft_tokens);
                if summary.finish == Finish::Repetition {
                    tracing::warn!(
                        job.id = key.id,
                        job.client = key.client,
                        trace_id = self.trace_id(key),
                        completion_tokens = summary.tokens.len(),
                        "answer stopped: its text went round in circles"
                    );
                }
                ReplyBody::Final(Answer {
                    reply_id: self.reply_ids.issue(),
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
    pub(super) fn is_interrupted(&self, key: &JobKey, ended: &Ended) -> bool {
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
    pub(super) fn pause(&mut self, key: &JobKey) {
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
        let promised = waiting.promised(self.limits.context);
        entry.state = State::Queued(waiting.clone());
        self.queue.insert(entry.place, key.clone());
        self.shares.enter(&key.client);
        self.running -= 1;
        self.promised = self.promised.saturating_sub(promised);
        self.suspect_running = false;
        if entry.tries.suspect {
            self.suspects += 1;
        }
        tracing::info!(
            job.id = key.id,
            job.client = key.client,
            trace_id = self.trace_id(key),
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
            None => false,
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
        self.accounts.expire(now);
        while let Some(key) = self.outcomes.pop_expired(now) {
            self.journal.note(Change::Forget(key));
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
                State::Arriving { .. } | State::Running { .. } => None,
            });
        queued
            .chain(self.outcomes.next_expiry())
            .chain(self.accounts.next_expiry())
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

    pub(super) fn queued_where(&self, wanted: impl Fn(&Waiting) -> bool) -> Vec<JobKey> {
        let wanted = |key: &&JobKey| match self.jobs.get(*key).map(|entry| &entry.state) {
            Some(State::Queued(waiting)) => wanted(waiting),
            _ => false,
        };
        self.queue.values().filter(wanted).cloned().collect()
    }
}

/// All places of a priority.
fn class(priority: Priority) -> std::ops::RangeInclusive<Place> {
    (Reverse(priority), 0)..=(Reverse(priority), u64::MAX)
}

/// Tokens that a job may come to.
pub(super) fn promised(waiting: &Waiting) -> i64 {
    i64::try_from(waiting.prompt.len() + waiting.job.max_tokens).unwrap_or(i64::MAX)
}
