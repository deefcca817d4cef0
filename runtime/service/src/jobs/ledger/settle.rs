//! Outcomes: said once, remembered for who asks again, forgotten in time.

use std::time::Duration;

use tokio::time::Instant;

use super::kept_outcomes::KeptOutcome;
use super::run::promised;
use super::{Ledger, State, Waiting, is_internal};
use crate::observers::{JobEnd, Observers, Outcome};
use phi_edge_api::JobKey;
use phi_edge_api::{Answer, Refusal, ReplyBody};
use phi_edge_job::ErrorCode;
use phi_edge_store::Change;

impl Ledger {
    pub(super) fn error(&mut self, code: ErrorCode, message: impl Into<String>) -> ReplyBody {
        ReplyBody::Error(Refusal {
            reply_id: self.reply_ids.issue(),
            code,
            message: message.into(),
            retry_after: None,
        })
    }

    /// Gives a job its outcome. One that has its outcome keeps it.
    pub(super) fn settle(&mut self, key: &JobKey, body: &ReplyBody, now: Instant) {
        self.settle_with(key, body, (0, 0), now);
    }

    /// As [`Ledger::settle`]; of `guesses`, all and those that were right, the observers are told.
    pub(super) fn settle_with(
        &mut self,
        key: &JobKey,
        body: &ReplyBody,
        guesses: (usize, usize),
        now: Instant,
    ) {
        let until = match self.jobs.get(key).map(|entry| &entry.state) {
            None | Some(State::Arriving { .. }) => return,
            Some(State::Queued(waiting) | State::Running { waiting, .. }) => waiting.expires,
        };
        let Some(entry) = self.jobs.remove(key) else {
            return;
        };
        match &entry.state {
            State::Arriving { .. } => {}
            State::Queued(_) => {
                self.queue.remove(&entry.place);
                self.shares.leave(&key.client);
                self.suspects -= usize::from(entry.tries.suspect);
            }
            State::Running { waiting, .. } => {
                self.running -= 1;
                self.promised = self
                    .promised
                    .saturating_sub(waiting.promised(self.limits.context));
                self.suspect_running = false;
            }
        }
        let mut unused = None;
        if let Some(waiting) = entry.waiting() {
            notify(
                &self.limits.observers,
                entry.tries.attempts,
                waiting,
                body,
                guesses,
                now,
            );
            let used = match body {
                ReplyBody::Final(answer) => answer.prompt_tokens + answer.completion_tokens,
                _ => 0,
            };
            unused = Some(promised(waiting) - i64::try_from(used).unwrap_or(i64::MAX));
        }
        self.accounts.release(key, unused, entry.session.as_deref(), now);
        match body {
            ReplyBody::Final(answer) => {
                self.stats.record_answer(answer);
                log_answer(key, answer, entry.waiting());
            }
            ReplyBody::Error(refusal) => {
                self.stats.record_failure();
                log_failure(key, refusal, entry.waiting());
            }
            ReplyBody::Chunk { .. } | ReplyBody::DeadLetter(_) | ReplyBody::Event(_) => {}
        }
        // Until its deadline a repeat is answered with the same.
        let until = until.max(now + self.limits.keep_for);
        if self.journal.is_durable() {
            self.journal.note(Change::Settle {
                key: key.clone(),
                body: Box::new(body.clone()),
                until: self.journal.moment(until),
            });
        }
        for address in entry.addresses {
            // The outcome of an internal job is sent to its listener; a held outcome is picked up.
            if !is_internal(key) && address.topic().is_some() {
                self.send(key.clone(), address, body.clone());
            }
        }
        let outcome = KeptOutcome {
            digest: entry.digest,
            place: entry.place.1,
            body: body.clone(),
            until,
        };
        self.keep_outcome(key, outcome);
    }

    /// Keeps an outcome for repeats, and forgets the oldest where there are too many.
    fn keep_outcome(&mut self, key: &JobKey, outcome: KeptOutcome) {
        self.outcomes.settle(key.clone(), outcome);
        let (max_outcomes, max_bytes) = (self.limits.keep_outcomes, self.limits.keep_bytes);
        while let Some(key) = self.outcomes.pop_excess(max_outcomes, max_bytes) {
            self.journal.note(Change::Forget(key));
        }
    }

    /// Forgets the outcome of a job, if it is kept.
    pub(super) fn forget(&mut self, key: &JobKey) {
        if self.outcomes.remove(key) {
            self.journal.note(Change::Forget(key.clone()));
        }
    }
}

/// Tells the observers of a job's end.
fn notify(
    observers: &Observers,
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
    observers.notify(|observer| observer.ended(&end));
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

fn log_failure(key: &JobKey, refusal: &Refusal, waiting: Option<&Waiting>) {
    tracing::info!(
        job.id = key.id,
        job.client = key.client,
        code = refusal.code.as_str(),
        error = refusal.message,
        trace_id = waiting.and_then(|waiting| waiting.job.trace_id()),
        "job failed"
    );
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
