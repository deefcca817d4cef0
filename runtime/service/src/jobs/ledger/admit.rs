//! The admission of requests: limits, repeats, and the way of a new job into the queue.

use std::time::Duration;

use phi_edge_models::Truncated;
use tokio::time::Instant;

use super::deadline_check::{EngineOutlook, LatePrompt};
use super::open_job::{AcceptedJob, MAX_ADDRESSES, OpenJob, TooManyAddresses};
use super::shares::QueueFull;
use super::{Admission, Ledger, is_internal};
use crate::jobs::journal::Stored;
use crate::jobs::known_images::{KnownImage, named_by};
use phi_edge_api::Refusal;
use phi_edge_api::{JobKey, NewJob};
use phi_edge_job::ErrorCode;
use phi_edge_prompts::Encoded;
use phi_edge_store::Change;

impl Ledger {
    /// Decides about a request before it is encoded. `redelivered`: the broker has sent the message again. If the first
    /// delivery was processed, no further outcome is owed; otherwise the message is a repeat like one of the client's.
    pub(crate) fn admit(
        &mut self,
        job: &NewJob,
        redelivered: bool,
        now: Instant,
    ) -> Result<Admission, Refusal> {
        if redelivered
            && job
                .receipt
                .is_some_and(|receipt| self.link.is_redelivery(&receipt))
        {
            return Ok(Admission::Duplicate(None));
        }
        let open = self.jobs.get(&job.key);
        let digest = open
            .map(OpenJob::digest)
            .or_else(|| self.outcomes.get(&job.key).map(|kept| kept.digest));
        if let Some(digest) = digest {
            if digest != job.body_digest {
                return Err(self.refuse(
                    ErrorCode::BadRequest,
                    "id: in use by another request; give each request its own id",
                ));
            }
            if let Some(arrival) = open.and_then(OpenJob::arrival) {
                return Ok(Admission::Arriving(arrival));
            }
            if redelivered && job.receipt.is_none() {
                return Ok(Admission::Duplicate(None));
            }
            return self.answer_repeat(job);
        }
        self.check_limits(job, now)?;
        let session = job.session.as_deref();
        let so_far = match self.accounts.reserve_session(&job.key, session, now) {
            Ok(so_far) => so_far,
            Err(occupied) => {
                return Err(self.busy(&format!(
                    "session: request {:?} of {:?} is not answered yet",
                    occupied.by,
                    session.unwrap_or_default()
                )));
            }
        };
        let place = self.queue.reserve(&job.key.client, job.priority);
        self.jobs.insert(job.key.clone(), OpenJob::arriving(job, place));
        Ok(Admission::New { session: so_far })
    }

    /// Checks a new request against the limits, and takes it from the budget of its client.
    fn check_limits(&mut self, job: &NewJob, now: Instant) -> Result<(), Refusal> {
        if let Some(closed) = self.closed {
            return Err(self.refuse(ErrorCode::Unavailable, closed.message()));
        }
        if let Some(reason) = self.journal.failing() {
            return Err(self.refuse(
                ErrorCode::Unavailable,
                format!("requests can't be stored at present ({reason}); send it again later"),
            ));
        }
        let queued = self.queue.len_with_arriving();
        match self.queue.check_room(&job.key.client, self.limits.queue) {
            // Internal jobs are few, and have no share.
            Err(QueueFull::ShareExhausted { own, share, clients }) if !is_internal(&job.key) => {
                return Err(self.busy(&format!(
                    "{queued} requests of {clients} clients wait already, {own} of them this client's, whose share of \
                     limits.queue is {share}"
                )));
            }
            Err(QueueFull::Full { waiting }) => {
                return Err(self.busy(&format!("{waiting} requests wait already")));
            }
            Ok(()) | Err(QueueFull::ShareExhausted { .. }) => {}
        }
        let waiting = self.unsent_outcomes();
        if waiting >= self.limits.queue {
            return Err(self.busy(&format!("{waiting} replies wait to be sent")));
        }
        if let Some((bytes, most)) = self.journal.overfull() {
            return Err(self.busy(&format!(
                "the store holds {bytes} bytes, store.max_size is {most}"
            )));
        }
        if !is_internal(&job.key)
            && let Err((wait, which)) = self.accounts.admit(&job.key, now)
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

    /// Answers a repeat: with the kept outcome, or with that of the open job when it is decided.
    fn answer_repeat(&mut self, job: &NewJob) -> Result<Admission, Refusal> {
        if let Some(kept) = self.outcomes.get(&job.key) {
            let body = kept.body.clone();
            // An outcome that has not left yet answers both.
            let is_sent = !is_internal(&job.key) && job.reply.topic().is_some();
            if is_sent && !self.has_unsent_outcome(&job.key, &job.reply, &body) {
                if self.unsent_outcomes() >= self.limits.queue {
                    return Err(self.busy("replies wait to be sent"));
                }
                self.send(job.key.clone(), job.reply.clone(), body);
            }
        } else if let Some(open) = self.jobs.get_mut(&job.key) {
            match open.add_address(&job.reply) {
                Ok(false) => {}
                Ok(true) => self.journal.note(Change::Addresses {
                    key: job.key.clone(),
                    addresses: open.addresses().to_vec(),
                }),
                Err(TooManyAddresses) => {
                    return Err(self.busy(&format!(
                        "{MAX_ADDRESSES} response topics wait for this request already"
                    )));
                }
            }
        }
        self.record_receipt(job.receipt);
        tracing::debug!(
            job.id = job.key.id,
            job.client = job.key.client,
            trace_id = job.trace_id(),
            "request repeated"
        );
        Ok(Admission::Duplicate(self.journal.send_and_wait()))
    }

    /// The deadline of a job that arrived at `arrived`.
    pub(crate) fn expires(&self, job: &NewJob, arrived: Instant) -> Instant {
        let most = self.limits.max_deadline;
        arrived + job.deadline.map_or(most, |deadline| deadline.min(most))
    }

    /// Accepts an arriving job with its encoded prompt, and with those of its images and of its session's that the prompt
    /// names; its deadline counts from `arrived`. An outcome is owed once this is
    /// stored and [`Ledger::arrived`] is called.
    pub(crate) fn accept(
        &mut self,
        mut job: NewJob,
        encoded: Encoded,
        session_images: Vec<KnownImage>,
        outlook: EngineOutlook,
        arrived: Instant,
        now: Instant,
    ) -> Result<Option<Stored>, Refusal> {
        // The ledger was unlocked while the prompt was encoded and may have been closed.
        if let Some(closed) = self.closed {
            return Err(self.refuse(ErrorCode::Unavailable, closed.message()));
        }
        // A job whose deadline has passed since is accepted and expires in the queue: so its repeats get the same outcome.
        let expires = self.expires(&job, arrived);
        if expires <= arrived {
            return Err(self.refuse(ErrorCode::Expired, "the deadline has passed already"));
        }
        let Truncated {
            ids: prompt,
            left_out: left_out_tokens,
        } = encoded.prompt;
        let images = KnownImage::all(&job.images, &encoded.images);
        let images = named_by(&prompt, images.into_iter().chain(session_images));
        let (files, images) = images.into_iter().map(|image| (image.file, image.info)).unzip();
        job.images = files;
        let left = expires.saturating_duration_since(now);
        // A job of this process is tried all the same.
        if !is_internal(&job.key)
            && let Some(late) = self.deadlines.late(prompt.len(), outlook, left, now)
        {
            return Err(self.refuse_late(prompt.len(), late, left));
        }
        let ahead = self.queue.len() + self.running.len();
        let Some(open) = self.jobs.get_mut(&job.key) else {
            return Err(self.refuse(ErrorCode::Internal, "the request was lost on its way"));
        };
        if !open.is_arriving() {
            return Err(self.refuse(ErrorCode::Internal, "the request has arrived twice"));
        }
        tracing::info!(
            job.id = job.key.id,
            job.client = job.key.client,
            // Not `priority`: in systemd's journal that is the severity of the line.
            job.priority = ?job.priority,
            prompt_tokens = prompt.len(),
            left_out_tokens,
            images = job.images.len(),
            max_tokens = job.max_tokens,
            ahead,
            trace_id = job.trace_id(),
            "job accepted"
        );
        self.accounts
            .set_prompt(&job.key, job.session.as_deref(), &prompt);
        let (key, receipt) = (job.key.clone(), job.receipt);
        let accepted = AcceptedJob {
            prompt,
            images,
            left_out_tokens,
            accepted: now,
            expires,
            job,
        };
        self.accounts.charge(&key, accepted.charged_tokens(), now);
        open.accept(accepted);
        if self.journal.is_durable()
            && let Some(record) = open.record(&self.journal)
        {
            self.journal.note(Change::Accept(Box::new(record)));
        }
        self.record_receipt(receipt);
        Ok(self.journal.send_and_wait())
    }

    /// Makes and counts the refusal of a prompt of `tokens` that can't be computed in the time that is left.
    fn refuse_late(&mut self, tokens: usize, late: LatePrompt, left: Duration) -> Refusal {
        let (time, left) = seconds_apart(late.time, left);
        let message = format!(
            "computing the prompt of {tokens} tokens ({} of them not in the prefix cache) takes about {time} s on this \
             node, and {left} s are left to the deadline; send it with more time, or a shorter one",
            late.new_tokens,
        );
        self.refuse(ErrorCode::Busy, message)
    }

    /// Puts an accepted job that is stored on its place in the queue.
    pub(crate) fn arrived(&mut self, key: &JobKey, now: Instant) {
        let Some(open) = self.jobs.get_mut(key) else {
            return;
        };
        let Some(cancelled) = open.arrive() else {
            return;
        };
        if let Some(queued) = open.queued() {
            self.queue.arrive(open.place(), queued);
        }
        if cancelled {
            self.cancel(key, now);
        }
        self.journal.send();
    }

    /// Removes an arriving job that is not accepted.
    pub(crate) fn abandon(&mut self, key: &JobKey, now: Instant) {
        if !self.jobs.get(key).is_some_and(OpenJob::is_arriving) {
            return;
        }
        let Some(open) = self.jobs.remove(key) else {
            return;
        };
        self.queue.abandon(&key.client);
        let unused = open.accepted().map(AcceptedJob::charged_tokens);
        self.accounts.release(key, unused, open.session(), now);
    }

    /// Makes and counts a refusal.
    pub(crate) fn refuse(&mut self, code: ErrorCode, message: impl Into<String>) -> Refusal {
        self.stats.record_refusal();
        Refusal {
            reply_id: self.reply_ids.issue(),
            code,
            message: message.into(),
            retry_after: None,
        }
    }

    /// Makes a refusal as busy, with the time after which the client may try again.
    fn busy(&mut self, why: &str) -> Refusal {
        let retry_after =
            self.stats
                .retry_after(self.queue.len(), self.limits.slots, self.limits.max_deadline);
        Refusal {
            retry_after: Some(retry_after),
            ..self.refuse(ErrorCode::Busy, format!("{why}; send the request again later"))
        }
    }

    /// Whether there is a job of this name, open or with a kept outcome.
    pub(crate) fn knows(&self, key: &JobKey) -> bool {
        self.jobs.contains_key(key) || self.outcomes.contains(key)
    }
}

/// A time and less than half of it as seconds, with as many decimals as show that.
fn seconds_apart(time: Duration, less: Duration) -> (String, String) {
    let shown = |decimals: usize| {
        let text = |time: Duration| format!("{:.decimals$}", time.as_secs_f64());
        (text(time), text(less))
    };
    let shows_it = |(time, less): &(String, String)| {
        let number = |text: &str| text.parse::<f64>().unwrap_or_default();
        number(less) > 0.0 && number(time) > 2.0 * number(less)
    };
    (1..9).map(shown).find(shows_it).unwrap_or_else(|| shown(9))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_the_decimals_that_tell_them_apart() {
        for (time, less, expected) in [
            (50_000_000, 24_000_000, ("50.0", "24.0")),
            (200_000, 98_000, ("0.200", "0.098")),
            (150_000, 40_000, ("0.15", "0.04")),
            (90, 4, ("0.000090", "0.000004")),
        ] {
            let (time, less) = seconds_apart(Duration::from_micros(time), Duration::from_micros(less));
            assert_eq!((time.as_str(), less.as_str()), expected);
        }
    }
}
