//! The run of a job: start, end, cancellation, expiry, and what the end of the process does to it.

use phi_edge_engine::Finish;
use tokio::time::Instant;

use super::open_job::{Cancellation, OpenJob};
use super::settle::DraftTokens;
use super::{Closed, Ledger, Start};
use crate::jobs::known_images::{KnownImage, image_tokens};
use crate::jobs::runner::Ended;
use phi_edge_api::JobKey;
use phi_edge_api::{Answer, ReplyBody};
use phi_edge_job::ErrorCode;
use phi_edge_store::Change;

impl Ledger {
    /// Starts the next job, if there are a slot and memory for it. A job that does not fit is not overtaken by jobs of a
    /// lower rank, only by those that rank above it meanwhile.
    pub(crate) fn start_next(&mut self, now: Instant) -> Option<Start> {
        self.expire(now);
        let limits = &self.limits;
        if self.closed.is_some() || self.running.is_full(limits.slots) {
            return None;
        }
        let (place, queued) = self.queue.peek(now)?;
        let (key, suspect) = (queued.key.clone(), queued.suspect);
        let open = self.jobs.get_mut(&key)?;
        let tokens = open.accepted()?.max_tokens(limits.context);
        let reservation = self
            .running
            .reserve(limits.slots, limits.memory, tokens, suspect)?;
        self.queue.start(place, tokens);
        let start = open.start(reservation)?;
        let attempt = start.attempt;
        self.journal.note(Change::Start { key, attempt });
        self.journal.send();
        Some(start)
    }

    /// Ends a job that [`Ledger::start_next`] has started.
    pub(crate) fn ended(&mut self, key: &JobKey, ended: Ended, now: Instant) {
        if self.is_interrupted(key, &ended) {
            self.keep_for_restart(key);
            return;
        }
        let session = self.jobs.get(key).and_then(OpenJob::session);
        let accepted = self.jobs.get(key).and_then(OpenJob::accepted);
        // One that was ended before its first token leaves its session as it was: there is nothing to go on from.
        if let (
            Ended::Answered {
                summary,
                seen,
                images,
                ..
            },
            Some(session),
            Some(accepted),
        ) = (&ended, session, accepted)
            && !(summary.tokens.is_empty() && matches!(summary.finish, Finish::Cancelled | Finish::Deadline))
        {
            let answer = seen.as_ref().unwrap_or(&summary.tokens);
            let images = KnownImage::all(&accepted.job.images, images);
            self.accounts.record_answer(key, session, answer, images, now);
        }
        let (left_out_tokens, image_tokens) = accepted.map_or((0, 0), |accepted| {
            (accepted.left_out_tokens, image_tokens(&accepted.prompt))
        });
        let mut drafts = DraftTokens::default();
        let body = match ended {
            Ended::Answered {
                text,
                finish,
                queued,
                summary,
                seen: _,
                images: _,
            } => {
                drafts = DraftTokens {
                    proposed: summary.draft_tokens,
                    accepted: summary.accepted_draft_tokens,
                };
                self.deadlines.observe(&summary, now);
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
                    left_out_tokens,
                    image_tokens,
                    queued,
                    prefill: summary.prefill,
                    decode: summary.decode,
                    model: std::sync::Arc::clone(&self.limits.model),
                })
            }
            Ended::Failed { code, message } => self.error(code, message),
            Ended::Lost => self.error(ErrorCode::Unavailable, Closed::EngineLost.message()),
        };
        self.settle_with(key, &body, drafts, now);
        self.journal.send();
    }

    /// Whether the job ended only because the process ends: then it is stored, and the next process continues it.
    fn is_interrupted(&self, key: &JobKey, ended: &Ended) -> bool {
        let Some(open) = self.jobs.get(key).filter(|open| open.is_running()) else {
            return false;
        };
        let paused = open.is_paused();
        let interrupted = match ended {
            Ended::Lost => true,
            Ended::Answered { summary, .. } => paused && summary.finish == Finish::Cancelled,
            Ended::Failed { code, .. } => paused && *code == ErrorCode::Unavailable,
        };
        self.journal.is_durable() && interrupted
    }

    /// Releases the slot of a job and keeps the job for the next process.
    fn keep_for_restart(&mut self, key: &JobKey) {
        let Some(open) = self.jobs.get_mut(key) else {
            return;
        };
        let is_paused = open.is_paused();
        let Some(reservation) = open.end_run() else {
            return;
        };
        self.running.release(reservation);
        if let Some(queued) = open.queued() {
            self.queue.insert(open.place(), queued);
        }
        // A job that the engine's end has interrupted stays marked as running: the next process is to see a crash.
        if is_paused {
            self.journal.note(Change::Pause { key: key.clone() });
        }
        tracing::info!(
            job.id = key.id,
            job.client = key.client,
            trace_id = self.trace_id(key),
            "job kept for the next start"
        );
        self.journal.send();
    }

    /// Cancels a job; returns false if there is none of this name without an outcome.
    pub(crate) fn cancel(&mut self, key: &JobKey, now: Instant) -> bool {
        let Some(open) = self.jobs.get_mut(key) else {
            return false;
        };
        if open.cancel() == Cancellation::NotStarted {
            let body = self.error(ErrorCode::Cancelled, "cancelled before it started");
            self.settle(key, &body, now);
            self.journal.send();
        }
        true
    }

    /// Ends queued jobs whose deadline has passed, and forgets outcomes and sessions whose time is over.
    pub(crate) fn expire(&mut self, now: Instant) {
        for key in self.queue.expired(now) {
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

    /// The time at which [`Ledger::expire`] has something to do next.
    pub(crate) fn next_expiry(&self) -> Option<Instant> {
        self.queue
            .next_expiry()
            .into_iter()
            .chain(self.outcomes.next_expiry())
            .chain(self.accounts.next_expiry())
            .min()
    }

    /// Refuses requests from now on. Running jobs continue. Queued jobs are kept for the next process where the journal is
    /// durable; otherwise they end with an error.
    pub(crate) fn close(&mut self, why: Closed, now: Instant) {
        // A lost engine stays lost while the service drains.
        self.closed.get_or_insert(why);
        if self.journal.is_durable() {
            return;
        }
        for key in self.queue.keys() {
            let body = self.error(ErrorCode::Unavailable, why.message());
            self.settle(&key, &body, now);
        }
    }

    /// Stops all running jobs for the end of the process.
    pub(crate) fn stop_running(&mut self) {
        self.jobs.values_mut().for_each(OpenJob::pause);
    }
}
