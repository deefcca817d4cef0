//! Whether a request is taken, and its way into the queue.

use std::cmp::Reverse;

use phi_edge_engine::TokenId;
use tokio::sync::watch;
use tokio::time::Instant;

use super::restore::record;
use super::run::promised;
use super::shares::QueueFull;
use super::{Admission, Entry, Ledger, MAX_ADDRESSES, State, Waiting, is_internal};
use crate::jobs::journal::Stored;
use phi_edge_api::Refusal;
use phi_edge_api::{JobKey, NewJob};
use phi_edge_job::ErrorCode;
use phi_edge_store::{Change, Tries};

impl Ledger {
    /// Looks at a request before the work of encoding it. `redelivered`: the broker sent it again. If it was dealt with the
    /// first time, the client waits for nothing more than it already gets; if not, it is a repeat of the client's like any.
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
            return Ok(Admission::Known(None));
        }
        let entry = self.jobs.get(&job.key);
        let digest = entry
            .map(|entry| entry.digest)
            .or_else(|| self.outcomes.get(&job.key).map(|kept| kept.digest));
        if let Some(digest) = digest {
            if digest != job.body_digest {
                return Err(self.refuse(
                    ErrorCode::BadRequest,
                    "id: in use by another request; give each request its own id",
                ));
            }
            if let Some(State::Arriving { arrived, .. }) = entry.map(|entry| &entry.state) {
                return Ok(Admission::Arriving(arrived.subscribe()));
            }
            if redelivered && job.receipt.is_none() {
                return Ok(Admission::Known(None));
            }
            return self.repeat(job);
        }
        self.check_limits(job, now)?;
        let session = job.session.as_deref();
        let said = match self.accounts.reserve_session(&job.key, session, now) {
            Ok(said) => said,
            Err(occupied) => {
                return Err(self.busy(&format!(
                    "session: request {:?} of {:?} is not answered yet",
                    occupied.by,
                    session.unwrap_or_default()
                )));
            }
        };
        let place = (Reverse(job.priority), self.places);
        self.places += 1;
        self.arriving += 1;
        self.shares.enter(&job.key.client);
        let entry = Entry {
            place,
            digest: job.body_digest,
            addresses: vec![job.reply.clone()],
            session: job.session.clone(),
            tries: Tries::default(),
            state: State::Arriving {
                waiting: None,
                cancelled: false,
                arrived: watch::Sender::new(()),
            },
        };
        self.jobs.insert(job.key.clone(), entry);
        Ok(Admission::New { said })
    }

    /// Whether there is room for one more.
    pub(super) fn check_limits(&mut self, job: &NewJob, now: Instant) -> Result<(), Refusal> {
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
        match self.shares.room(&job.key.client, queued, self.limits.queue) {
            // A rule's own jobs are few, and their windows are waited for.
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
        let waiting = self.replies_waiting();
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

    /// A client asks again for what it asked before: it gets the outcome once more, or waits for it.
    pub(super) fn repeat(&mut self, job: &NewJob) -> Result<Admission, Refusal> {
        if let Some(kept) = self.outcomes.get(&job.key) {
            let body = kept.body.clone();
            // One that has not left yet serves both.
            let is_sent = !is_internal(&job.key) && job.reply.topic().is_some();
            if is_sent && !self.is_leaving(&job.key, &job.reply, &body) {
                if self.replies_waiting() >= self.limits.queue {
                    return Err(self.busy("replies wait to be sent"));
                }
                self.send(job.key.clone(), job.reply.clone(), body);
            }
        } else if let Some(entry) = self.jobs.get_mut(&job.key)
            && !entry.addresses.contains(&job.reply)
        {
            if entry.addresses.len() >= MAX_ADDRESSES {
                return Err(self.busy(&format!(
                    "{MAX_ADDRESSES} response topics wait for this request already"
                )));
            }
            entry.addresses.push(job.reply.clone());
            let addresses = entry.addresses.clone();
            let key = job.key.clone();
            self.journal.note(Change::Addresses { key, addresses });
        }
        self.record_receipt(job.receipt);
        tracing::debug!(
            job.id = job.key.id,
            job.client = job.key.client,
            trace_id = job.trace_id(),
            "request repeated"
        );
        Ok(Admission::Known(self.journal.send_and_wait()))
    }

    /// When a job that arrived at `arrived` is of no use any more.
    pub(crate) fn expires(&self, job: &NewJob, arrived: Instant) -> Instant {
        let most = self.limits.max_deadline;
        arrived + job.deadline.map_or(most, |deadline| deadline.min(most))
    }

    /// Takes a job in that is arriving; its time counts from `arrived`. From when this is stored, and [`Ledger::arrived`] is called, it gets an outcome.
    pub(crate) fn accept(
        &mut self,
        job: NewJob,
        prompt: Vec<TokenId>,
        arrived: Instant,
        now: Instant,
    ) -> Result<Option<Stored>, Refusal> {
        // The ledger was unlocked while the prompt was encoded: things may have changed.
        if let Some(closed) = self.closed {
            return Err(self.refuse(ErrorCode::Unavailable, closed.message()));
        }
        // One that is over only by now is taken, and ends as what its turn comes too late for: repeats get the same.
        let expires = self.expires(&job, arrived);
        if expires <= arrived {
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
            // Not `priority`: that is the line's own in systemd's journal.
            job.priority = ?job.priority,
            prompt_tokens = prompt.len(),
            max_tokens = job.max_tokens,
            ahead,
            trace_id = job.trace_id(),
            "job accepted"
        );
        self.accounts
            .set_prompt(&job.key, job.session.as_deref(), &prompt);
        let new = Waiting {
            prompt,
            accepted: now,
            expires,
            job,
        };
        let record = record(&new, place, entry.tries, &self.journal);
        let receipt = new.job.receipt;
        self.accounts.charge(&new.job.key, promised(&new), now);
        *waiting = Some(Box::new(new));
        if self.journal.is_durable() {
            self.journal.note(Change::Accept(Box::new(record)));
        }
        self.record_receipt(receipt);
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
        self.shares.leave(&key.client);
        let Some(entry) = self.jobs.remove(key) else {
            return;
        };
        let unused = entry.waiting().map(promised);
        self.accounts.release(key, unused, entry.session.as_deref(), now);
    }

    /// Makes a refusal.
    pub(crate) fn refuse(&mut self, code: ErrorCode, message: impl Into<String>) -> Refusal {
        self.stats.record_refusal();
        Refusal {
            reply_id: self.reply_ids.issue(),
            code,
            message: message.into(),
            retry_after: None,
        }
    }

    pub(super) fn busy(&mut self, why: &str) -> Refusal {
        let retry_after =
            self.stats
                .retry_after(self.queue.len(), self.limits.slots, self.limits.max_deadline);
        Refusal {
            retry_after: Some(retry_after),
            ..self.refuse(ErrorCode::Busy, format!("{why}; send the request again later"))
        }
    }

    /// Whether there is a job of this name.
    pub(crate) fn knows(&self, key: &JobKey) -> bool {
        self.jobs.contains_key(key) || self.outcomes.contains(key)
    }
}
