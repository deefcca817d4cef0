//! What an earlier process left, and writing all of it anew.

use std::cmp::Reverse;

use phi_edge_engine::TokenId;
use tokio::time::Instant;

use super::kept_outcomes::KeptOutcome;
use super::{Entry, Ledger, MAX_CRASHES, Place, State, Waiting};
use crate::jobs::journal::Journal;
use crate::prompts::Prompts;
use phi_edge_api::DeadLetter;
use phi_edge_api::{JobKey, NewJob};
use phi_edge_job::ErrorCode;
use phi_edge_rules::Time;
use phi_edge_rules::changes::RestoredRules;
use phi_edge_store::{Change, JobRecord, Restored, RestoredJob, RestoredState, Tries};

impl Ledger {
    /// Reads what an earlier process left, if it has just become readable; gives what rules need of it.
    pub(crate) fn restore_if_any(
        &mut self,
        prompts: &dyn Prompts,
        now: Instant,
        wall: Time,
    ) -> Option<RestoredRules> {
        let restored = self.journal.take_restored()?;
        Some(self.restore(restored, prompts, now, wall))
    }

    /// Takes over what an earlier process left of requests and outcomes.
    pub(super) fn restore(
        &mut self,
        restored: Restored,
        prompts: &dyn Prompts,
        now: Instant,
        wall: Time,
    ) -> RestoredRules {
        let Restored {
            jobs,
            mut outbox,
            receipts,
            former_receipts,
            link_note,
            rules,
        } = restored;
        tracing::info!(
            open = jobs
                .iter()
                .filter(|job| matches!(job.state, RestoredState::Open))
                .count(),
            outcomes = jobs
                .iter()
                .filter(|job| matches!(job.state, RestoredState::Done { .. }))
                .count(),
            undelivered = outbox.len(),
            "the store is read"
        );
        // Before any of our own.
        self.outgoing.renumber(&mut outbox);
        for reply in outbox.into_iter().rev() {
            self.send_again(reply, wall);
        }
        self.sweep_events(wall);
        self.link.restore(receipts, former_receipts, link_note);
        self.make_way(jobs.iter().map(|job| job.record.place).max());
        for job in jobs {
            self.restore_job(job, prompts, now);
        }
        self.journal.send();
        rules
    }

    /// Puts what was accepted before the file could be read behind all that the file has, of which `last` is the last.
    fn make_way(&mut self, last: Option<u64>) {
        let Some(by) = last.map(|last| last.saturating_add(1)) else {
            return;
        };
        let behind = |(priority, place): Place| (priority, place.saturating_add(by));
        self.places = self.places.saturating_add(by);
        for entry in self.jobs.values_mut() {
            entry.place = behind(entry.place);
        }
        self.outcomes.shift_places(by);
        let queue = std::mem::take(&mut self.queue);
        self.queue = queue
            .into_iter()
            .map(|(place, key)| (behind(place), key))
            .collect();
    }

    pub(super) fn restore_job(&mut self, restored: RestoredJob, prompts: &dyn Prompts, now: Instant) {
        let RestoredJob {
            record,
            addresses,
            state,
        } = restored;
        let key = record.job.key.clone();
        if self.knows(&key) {
            return;
        }
        let place = (Reverse(record.job.priority), record.place);
        let tries = record.tries;
        let digest = record.job.body_digest;
        let entry = |session, state| Entry {
            place,
            digest,
            addresses,
            session,
            tries,
            state,
        };
        match state {
            RestoredState::Done { body, until_up_ms } => {
                let until = now + self.journal.left(until_up_ms);
                let outcome = KeptOutcome {
                    digest,
                    place: record.place,
                    body,
                    until,
                };
                self.outcomes.insert(key, outcome);
            }
            RestoredState::Open => {
                let expires = now + self.journal.left(record.expires.up_ms);
                let session = record.job.session.clone().filter(|session| {
                    let session = Some(session.as_str());
                    let reserved = self.accounts.reserve_session(&key, session, now).is_ok();
                    self.accounts.set_prompt(&key, session, &record.prompt);
                    reserved
                });
                let waiting = Waiting {
                    prompt: record.prompt,
                    accepted: now,
                    expires,
                    job: record.job,
                };
                let entry = entry(session, State::Queued(Box::new(waiting)));
                self.queue.insert(place, key.clone());
                self.shares.enter(&key.client);
                self.suspects += usize::from(tries.suspect);
                self.jobs.insert(key.clone(), entry);
                if tries.crashes >= MAX_CRASHES {
                    self.give_up(&key, tries.crashes, prompts, now);
                }
            }
        }
    }

    /// A job that was alone at so many crashes is taken to be their cause.
    pub(super) fn give_up(&mut self, key: &JobKey, crashes: u32, prompts: &dyn Prompts, now: Instant) {
        let message = format!(
            "the service crashed {crashes} times while it worked on this request alone; it is not tried again"
        );
        tracing::error!(
            job.id = key.id,
            job.client = key.client,
            trace_id = self.trace_id(key),
            crashes,
            "a job is given up"
        );
        // The request itself is not stored: what was asked stands in its prompt.
        let (topic, prompt) = match self.jobs.get(key).and_then(Entry::waiting) {
            Some(waiting) => (
                waiting.job.reply.topic().unwrap_or_default().to_owned(),
                text(&waiting.prompt, prompts),
            ),
            None => Default::default(),
        };
        let letter = DeadLetter {
            reason: ErrorCode::Internal.as_str().to_owned(),
            message: message.clone(),
            topic,
            id: Some(key.id.clone()),
            payload: DeadLetter::beginning(prompt.as_bytes()),
            bytes: prompt.len(),
        };
        self.send_letter(key.clone(), letter);
        let body = self.error(ErrorCode::Internal, message);
        self.settle(key, &body, now);
    }

    /// Writes everything that is to be kept anew, for a store that has missed something.
    pub(crate) fn write_all(&mut self, rules: &RestoredRules, wall: Time) {
        let mut all: Vec<Change> = rules.changes().into_iter().map(Change::Rule).collect();
        for (key, entry) in &self.jobs {
            let key = key.clone();
            match (&entry.state, entry.waiting()) {
                (State::Arriving { .. }, _) => {}
                (state, Some(waiting)) => {
                    let record = record(waiting, entry.place, entry.tries, &self.journal);
                    all.push(Change::Accept(Box::new(record)));
                    let addresses = entry.addresses.clone();
                    all.push(Change::Addresses {
                        key: key.clone(),
                        addresses,
                    });
                    if matches!(state, State::Running { .. }) {
                        let attempt = entry.tries.attempts;
                        all.push(Change::Start { key, attempt });
                    }
                }
                (_, None) => {}
            }
        }
        for (key, outcome) in self.outcomes.iter() {
            all.push(Change::Accept(Box::new(outcome.record(key, &self.journal))));
            all.push(Change::Settle {
                key: key.clone(),
                body: Box::new(outcome.body.clone()),
                until: self.journal.moment(outcome.until),
            });
        }
        let undelivered = self.outgoing.undelivered(wall);
        all.extend(undelivered.map(|reply| Change::Post(Box::new(reply))));
        all.extend(self.link.all_changes());
        self.journal.replace(all);
    }
}

/// A prompt in words.
fn text(prompt: &[TokenId], prompts: &dyn Prompts) -> String {
    let mut detokenizer = prompts.detokenizer();
    let mut text: String = prompt.iter().map(|id| detokenizer.push(*id)).collect();
    text.push_str(&detokenizer.finish());
    text
}

pub(super) fn record(waiting: &Waiting, place: Place, tries: Tries, journal: &Journal) -> JobRecord {
    JobRecord {
        job: NewJob {
            messages: Vec::new(),
            ..waiting.job.clone()
        },
        prompt: waiting.prompt.clone(),
        place: place.1,
        tries,
        accepted: journal.moment(waiting.accepted),
        expires: journal.moment(waiting.expires),
    }
}
