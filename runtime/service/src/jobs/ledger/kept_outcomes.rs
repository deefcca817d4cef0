//! The outcomes of finished jobs, kept for repeats of their requests.

use std::collections::{HashMap, VecDeque};

use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::jobs::journal::Journal;
use phi_edge_api::{JobKey, NewJob, Priority, ReplyAddress, ReplyBody, Truncation};
use phi_edge_store::{JobRecord, Tries};

/// The outcome of one job.
#[derive(Debug)]
pub(super) struct KeptOutcome {
    /// The digest of the request's body.
    pub(super) digest: [u8; 32],
    /// The number of the job's place in the queue.
    pub(super) place: u64,
    pub(super) body: ReplyBody,
    /// The time until which it is kept.
    pub(super) until: Instant,
}

/// The outcomes of finished jobs, and the listeners within this process for outcomes to come.
#[derive(Debug, Default)]
pub(super) struct KeptOutcomes {
    outcomes: HashMap<JobKey, KeptOutcome>,
    /// The keys of `outcomes`, oldest first.
    order: VecDeque<JobKey>,
    /// The sum of the outcomes' text, in bytes.
    bytes: usize,
    listeners: HashMap<JobKey, oneshot::Sender<ReplyBody>>,
}

impl KeptOutcomes {
    /// The outcome of a job, if it is finished and not forgotten.
    pub(super) fn get(&self, key: &JobKey) -> Option<&KeptOutcome> {
        self.outcomes.get(key)
    }

    /// Whether the outcome of a job is kept.
    pub(super) fn contains(&self, key: &JobKey) -> bool {
        self.outcomes.contains_key(key)
    }

    /// All outcomes, in no order.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&JobKey, &KeptOutcome)> {
        self.outcomes.iter()
    }

    /// Adds an outcome that has just been decided, and sends it to its listener.
    pub(super) fn settle(&mut self, key: JobKey, outcome: KeptOutcome) {
        if let Some(listener) = self.listeners.remove(&key) {
            // An error: the listener has been dropped.
            let _ = listener.send(outcome.body.clone());
        }
        self.insert(key, outcome);
    }

    /// Adds an outcome, which is the newest.
    pub(super) fn insert(&mut self, key: JobKey, outcome: KeptOutcome) {
        self.bytes += text_bytes(&outcome.body);
        self.order.push_back(key.clone());
        self.outcomes.insert(key, outcome);
    }

    /// Removes the oldest outcome where there are more than `max_outcomes`, or more than `max_bytes` of text; returns its
    /// key.
    pub(super) fn pop_excess(&mut self, max_outcomes: usize, max_bytes: usize) -> Option<JobKey> {
        let is_over = self.order.len() > max_outcomes || self.bytes > max_bytes;
        if is_over { self.pop_oldest() } else { None }
    }

    /// Removes the oldest outcome if its time is over; returns its key.
    pub(super) fn pop_expired(&mut self, now: Instant) -> Option<JobKey> {
        let is_expired = self.next_expiry().is_some_and(|until| until <= now);
        if is_expired { self.pop_oldest() } else { None }
    }

    /// Removes the outcome of a job; returns whether there was one.
    pub(super) fn remove(&mut self, key: &JobKey) -> bool {
        let Some(outcome) = self.outcomes.remove(key) else {
            return false;
        };
        self.bytes -= text_bytes(&outcome.body);
        if let Some(index) = self.order.iter().position(|kept| kept == key) {
            self.order.remove(index);
        }
        true
    }

    /// The time at which [`KeptOutcomes::pop_expired`] has something to do next.
    pub(super) fn next_expiry(&self) -> Option<Instant> {
        let oldest = self.outcomes.get(self.order.front()?)?;
        Some(oldest.until)
    }

    /// Sends the outcome of a job to `listener`: now, or when it is decided.
    pub(super) fn listen(&mut self, key: &JobKey, listener: oneshot::Sender<ReplyBody>) {
        if let Some(outcome) = self.outcomes.get(key) {
            // An error: the receiver has been dropped.
            let _ = listener.send(outcome.body.clone());
        } else {
            self.listeners.insert(key.clone(), listener);
        }
    }

    /// Drops the listener for the outcome of a job.
    pub(super) fn unlisten(&mut self, key: &JobKey) {
        self.listeners.remove(key);
    }

    /// Raises the numbers of all places by `by`.
    pub(super) fn shift_places(&mut self, by: u64) {
        for outcome in self.outcomes.values_mut() {
            outcome.place = outcome.place.saturating_add(by);
        }
    }

    fn pop_oldest(&mut self) -> Option<JobKey> {
        let key = self.order.pop_front()?;
        if let Some(outcome) = self.outcomes.remove(&key) {
            self.bytes -= text_bytes(&outcome.body);
        }
        Some(key)
    }
}

impl KeptOutcome {
    /// The row of the job in the store. Of the request, only the key and the digest are left.
    pub(super) fn record(&self, key: &JobKey, journal: &Journal) -> JobRecord {
        JobRecord {
            job: NewJob {
                key: key.clone(),
                body_digest: self.digest,
                messages: Vec::new(),
                images: Vec::new(),
                max_tokens: 0,
                sampling: phi_edge_engine::Sampling::default(),
                stop: Vec::new(),
                truncation: Truncation::default(),
                stream: false,
                progress: false,
                priority: Priority::Normal,
                deadline: None,
                session: None,
                reply: ReplyAddress::nowhere(),
                payload_bytes: None,
                receipt: None,
            },
            prompt: Vec::new(),
            left_out_tokens: 0,
            place: self.place,
            tries: Tries::default(),
            accepted: journal.moment(Instant::now()),
            expires: journal.moment(self.until),
        }
    }
}

/// The text of an outcome, in bytes.
fn text_bytes(body: &ReplyBody) -> usize {
    match body {
        ReplyBody::Final(answer) => answer.text.len(),
        ReplyBody::Error(refusal) => refusal.message.len(),
        ReplyBody::Chunk { .. } | ReplyBody::DeadLetter(_) | ReplyBody::Event(_) => 0,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use phi_edge_api::Refusal;
    use phi_edge_job::ErrorCode;

    fn key(id: &str) -> JobKey {
        JobKey {
            client: None,
            id: id.to_owned(),
        }
    }

    fn outcome(text: &str, until: Instant) -> KeptOutcome {
        KeptOutcome {
            digest: [0; 32],
            place: 0,
            body: ReplyBody::Error(Refusal {
                reply_id: String::new(),
                code: ErrorCode::Internal,
                message: text.to_owned(),
                retry_after: None,
            }),
            until,
        }
    }

    #[test]
    fn the_oldest_outcomes_go_by_number_by_bytes_and_by_age() {
        let start = Instant::now();
        let mut kept = KeptOutcomes::default();
        for (second, id) in ["a", "b", "c", "d"].into_iter().enumerate() {
            let until = start + Duration::from_secs(second as u64);
            kept.insert(key(id), outcome("four", until));
        }
        assert_eq!(kept.pop_excess(4, 16), None);
        assert_eq!(kept.pop_excess(3, 16), Some(key("a")));
        assert!(kept.remove(&key("c")) && !kept.remove(&key("c")));
        assert_eq!(kept.pop_excess(3, 7), Some(key("b")));
        assert_eq!(kept.pop_excess(3, 7), None);
        assert_eq!(kept.next_expiry(), Some(start + Duration::from_secs(3)));
        assert_eq!(kept.pop_expired(start), None);
        assert_eq!(kept.pop_expired(start + Duration::from_secs(3)), Some(key("d")));
        assert!(kept.bytes == 0 && kept.outcomes.is_empty() && kept.order.is_empty());
    }
}
