//! The state of an earlier process, and the complete state for a store that has lost changes.

use std::collections::HashMap;

use phi_edge_engine::Symbol;
use tokio::time::Instant;

use super::Ledger;
use super::kept_outcomes::KeptOutcome;
use super::open_job::OpenJob;
use phi_edge_api::{DeadLetter, JobKey, ReplyBody};
use phi_edge_job::ErrorCode;
use phi_edge_prompts::Prompts;
use phi_edge_rules::Time;
use phi_edge_rules::changes::RestoredRules;
use phi_edge_store::{Change, Restored, RestoredJob, RestoredState};

/// The number of crashes while a job ran alone, after which it is not tried again.
const MAX_CRASHES: u32 = 3;

impl Ledger {
    /// Restores the state of an earlier process, if it has just become readable; returns that of the rules.
    pub(crate) fn restore_if_any(
        &mut self,
        prompts: &dyn Prompts,
        now: Instant,
        wall: Time,
    ) -> Option<RestoredRules> {
        let restored = self.journal.take_restored()?;
        Some(self.restore(restored, prompts, now, wall))
    }

    /// Adds the jobs, outcomes and messages of an earlier process; returns the state of the rules.
    fn restore(
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
        // The messages of the earlier process leave before those of this one.
        self.outgoing.renumber(&mut outbox);
        let outcomes: HashMap<&JobKey, &ReplyBody> = jobs.iter().filter_map(outcome_of).collect();
        for reply in outbox.into_iter().rev() {
            let is_outcome = outcomes.get(&reply.key).is_some_and(|body| **body == reply.body);
            self.restore_message(reply, is_outcome, wall);
        }
        self.sweep_events(wall);
        self.link.restore(receipts, former_receipts, link_note);
        self.shift_places_behind(jobs.iter().map(|job| job.record.place).max());
        for job in jobs {
            self.restore_job(job, prompts, now);
        }
        self.journal.send();
        rules
    }

    /// Moves the jobs that this process has accepted before the store could be read behind those of the store, of which
    /// `last` has the last place.
    fn shift_places_behind(&mut self, last: Option<u64>) {
        let Some(by) = last.map(|last| last.saturating_add(1)) else {
            return;
        };
        self.queue.shift_places(by);
        self.outcomes.shift_places(by);
        for open in self.jobs.values_mut() {
            open.shift_place(by);
        }
    }

    fn restore_job(&mut self, restored: RestoredJob, prompts: &dyn Prompts, now: Instant) {
        let RestoredJob {
            record,
            addresses,
            lost_images,
            state,
        } = restored;
        let key = record.job.key.clone();
        if self.knows(&key) {
            return;
        }
        match state {
            RestoredState::Done { body, until_up_ms } => {
                let until = now + self.journal.left(until_up_ms);
                let outcome = KeptOutcome {
                    digest: record.job.body_digest,
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
                let crashes = record.tries.crashes;
                let open = OpenJob::restored(record, addresses, session, now, expires);
                if let Some(queued) = open.queued() {
                    self.queue.insert(open.place(), queued);
                }
                self.jobs.insert(key.clone(), open);
                if lost_images {
                    let message = "the request's images are lost: the store was damaged; send it again";
                    let body = self.error(ErrorCode::Internal, message.to_owned());
                    self.settle(&key, &body, now);
                } else if crashes >= MAX_CRASHES {
                    self.give_up(&key, crashes, prompts, now);
                }
            }
        }
    }

    /// Ends a job that ran alone at so many crashes that it is taken to be their cause.
    fn give_up(&mut self, key: &JobKey, crashes: u32, prompts: &dyn Prompts, now: Instant) {
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
        // The store keeps no request: the letter has the text of the prompt.
        let (topic, prompt) = match self.jobs.get(key).and_then(OpenJob::accepted) {
            Some(accepted) => (
                accepted.job.reply.topic().unwrap_or_default().to_owned(),
                text(&accepted.prompt, prompts),
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

    /// Hands the complete state to a store that has lost changes.
    pub(crate) fn write_all(&mut self, rules: &RestoredRules, wall: Time) {
        let mut all: Vec<Change> = rules.changes().into_iter().map(Change::Rule).collect();
        let open = self.jobs.iter().filter(|(_, open)| !open.is_arriving());
        for (key, open) in open {
            let Some(record) = open.record(&self.journal) else {
                continue;
            };
            all.push(Change::Accept(Box::new(record)));
            all.push(Change::Addresses {
                key: key.clone(),
                addresses: open.addresses().to_vec(),
            });
            if open.is_running() {
                all.push(Change::Start {
                    key: key.clone(),
                    attempt: open.tries().attempts,
                });
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

/// The text of a prompt, without its images.
fn text(prompt: &[Symbol], prompts: &dyn Prompts) -> String {
    let mut detokenizer = prompts.detokenizer();
    let mut text: String = prompt
        .iter()
        .filter_map(|symbol| symbol.token())
        .map(|id| detokenizer.push(id))
        .collect();
    text.push_str(&detokenizer.finish());
    text
}

/// The outcome of a restored job, if it has one.
fn outcome_of(job: &RestoredJob) -> Option<(&JobKey, &ReplyBody)> {
    match &job.state {
        RestoredState::Done { body, .. } => Some((&job.record.job.key, body)),
        RestoredState::Open => None,
    }
}
