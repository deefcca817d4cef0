//! The end of a job: its one outcome is decided, sent and kept for repeats.

use std::time::Duration;

use tokio::time::Instant;

use super::kept_outcomes::KeptOutcome;
use super::open_job::{AcceptedJob, OpenJob};
use super::{Ledger, is_internal};
use crate::observers::{JobEnd, Observers, Outcome};
use phi_edge_api::JobKey;
use phi_edge_api::{Answer, Refusal, ReplyBody};
use phi_edge_job::ErrorCode;
use phi_edge_store::Change;

/// The numbers of draft tokens of an answer.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct DraftTokens {
    pub(super) proposed: usize,
    pub(super) accepted: usize,
}

impl Ledger {
    /// The outcome of a job that failed.
    pub(super) fn error(&mut self, code: ErrorCode, message: impl Into<String>) -> ReplyBody {
        ReplyBody::Error(Refusal {
            reply_id: self.reply_ids.issue(),
            code,
            message: message.into(),
            retry_after: None,
        })
    }

    /// Ends an accepted job with an outcome. A job that has its outcome keeps it.
    pub(super) fn settle(&mut self, key: &JobKey, body: &ReplyBody, now: Instant) {
        self.settle_with(key, body, DraftTokens::default(), now);
    }

    /// As [`Ledger::settle`], with the numbers of draft tokens for the observers.
    pub(super) fn settle_with(&mut self, key: &JobKey, body: &ReplyBody, drafts: DraftTokens, now: Instant) {
        if self.jobs.get(key).is_none_or(OpenJob::is_arriving) {
            return;
        }
        let Some(mut open) = self.jobs.remove(key) else {
            return;
        };
        match open.end_run() {
            Some(reservation) => self.running.release(reservation),
            None => {
                self.queue.remove(open.place());
            }
        }
        let Some(accepted) = open.accepted() else {
            return;
        };
        let attempts = open.tries().attempts;
        notify(&self.limits.observers, attempts, accepted, body, drafts, now);
        let used = match body {
            ReplyBody::Final(answer) => answer.prompt_tokens + answer.completion_tokens,
            _ => 0,
        };
        let unused = accepted.charged_tokens() - i64::try_from(used).unwrap_or(i64::MAX);
        self.accounts.release(key, Some(unused), open.session(), now);
        match body {
            ReplyBody::Final(answer) => {
                self.stats.record_answer(answer);
                log_answer(key, answer, accepted);
            }
            ReplyBody::Error(refusal) => {
                self.stats.record_failure();
                log_failure(key, refusal, accepted);
            }
            ReplyBody::Chunk { .. } | ReplyBody::DeadLetter(_) | ReplyBody::Event(_) => {}
        }
        // A repeat before the deadline gets the same outcome.
        let until = accepted.expires.max(now + self.limits.keep_for);
        if self.journal.is_durable() {
            self.journal.note(Change::Settle {
                key: key.clone(),
                body: Box::new(body.clone()),
                until: self.journal.moment(until),
            });
        }
        for address in open.addresses() {
            // The outcome of an internal job is sent to its listener; a held outcome is picked up.
            if !is_internal(key) && address.topic().is_some() {
                self.send(key.clone(), address.clone(), body.clone());
            }
        }
        let outcome = KeptOutcome {
            digest: open.digest(),
            place: open.place().number(),
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

/// Notifies the observers of the end of a job.
fn notify(
    observers: &Observers,
    attempts: u32,
    accepted: &AcceptedJob,
    body: &ReplyBody,
    drafts: DraftTokens,
    now: Instant,
) {
    let outcome = match body {
        ReplyBody::Final(answer) => Outcome::Answered {
            answer,
            guessed: drafts.proposed,
            guessed_right: drafts.accepted,
        },
        ReplyBody::Error(refusal) => Outcome::Failed(refusal),
        ReplyBody::Chunk { .. } | ReplyBody::DeadLetter(_) | ReplyBody::Event(_) => return,
    };
    let end = JobEnd {
        job: &accepted.job,
        prompt: &accepted.prompt,
        internal: is_internal(&accepted.job.key),
        attempts,
        took: now.saturating_duration_since(accepted.accepted),
        outcome,
    };
    observers.notify(|observer| observer.ended(&end));
}

fn log_answer(key: &JobKey, answer: &Answer, accepted: &AcceptedJob) {
    tracing::info!(
        job.id = key.id,
        job.client = key.client,
        finish_reason = ?answer.finish_reason,
        prompt_tokens = answer.prompt_tokens,
        completion_tokens = answer.completion_tokens,
        queued_ms = millis(answer.queued),
        prefill_ms = millis(answer.prefill),
        decode_ms = millis(answer.decode),
        trace_id = accepted.job.trace_id(),
        "job answered"
    );
}

fn log_failure(key: &JobKey, refusal: &Refusal, accepted: &AcceptedJob) {
    tracing::info!(
        job.id = key.id,
        job.client = key.client,
        code = refusal.code.as_str(),
        error = refusal.message,
        trace_id = accepted.job.trace_id(),
        "job failed"
    );
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
