//! Messages on their way: they leave once the journal is safe, and are forgotten once the broker has them.

use tokio::sync::oneshot;

use super::{Ledger, Outgoing, State};
use crate::job::{JobKey, ReplyAddress};
use crate::journal::Stored;
use crate::receipts::Receipt;
use crate::reply::{Reply, ReplyBody};
use crate::rules::Published;
use crate::rules::record::RuleChange;
use crate::store::Change;

impl Ledger {
    /// Sends what is no job's outcome: a refusal, a dead letter. It leaves when this is stored; `receipt` is remembered
    /// for the broker's redelivery of the request.
    pub(crate) fn post(
        &mut self,
        key: JobKey,
        address: ReplyAddress,
        body: ReplyBody,
        receipt: Option<Receipt>,
    ) -> Option<Stored> {
        self.note_receipt(receipt);
        self.send(key, address, body);
        self.journal.send_and_wait()
    }

    /// The store did not take a batch of messages that promise nothing: they leave without.
    pub(crate) fn leave_unstored(&mut self, batch: u64) {
        for out in &mut self.outgoing {
            if out.safe_with == batch {
                out.safe_with = 0;
            }
        }
    }

    /// The broker has acknowledged a message.
    pub(crate) fn delivered(&mut self, delivery: u64) {
        if self.undelivered.remove(&delivery).is_some() {
            self.journal.note(Change::Delivered(delivery));
            self.journal.send();
        }
    }

    /// Whoever asks within this process gets the outcome of `key` here, at once if there is one.
    pub(crate) fn listen(&mut self, key: &JobKey, listener: oneshot::Sender<ReplyBody>) {
        if let Some(State::Done(body, _)) = self.jobs.get(key).map(|entry| &entry.state) {
            // An error: nobody waits any more.
            let _ = listener.send(body.clone());
        } else {
            self.listeners.insert(key.clone(), listener);
        }
    }

    /// Nobody waits for this outcome any more.
    pub(crate) fn unlisten(&mut self, key: &JobKey) {
        self.listeners.remove(key);
    }

    /// Puts an event among the messages that leave; the jobs that worded it are forgotten. All of it is stored together.
    pub(crate) fn publish_event(&mut self, published: Published, change: RuleChange, jobs: &[JobKey]) {
        let key = JobKey {
            client: None,
            id: published.event.event_id.clone(),
        };
        let address = ReplyAddress {
            topic: published.output.topic.clone(),
            correlation: None,
            traceparent: None,
        };
        self.send(key, address, ReplyBody::Event(Box::new(published)));
        self.journal.note(Change::Rule(change));
        for key in jobs {
            self.forget(key);
        }
        self.journal.send();
    }

    /// Puts a message among those that leave, and in the journal.
    pub(super) fn send(&mut self, key: JobKey, address: ReplyAddress, body: ReplyBody) {
        let delivery = self.journal.is_durable().then(|| {
            self.deliveries += 1;
            self.deliveries
        });
        let reply = Reply {
            key,
            address,
            body,
            delivery,
        };
        let mut safe_with = 0;
        if let Some(delivery) = delivery {
            safe_with = self.journal.number();
            self.journal.note(Change::Post(Box::new(reply.clone())));
            self.undelivered.insert(delivery, reply.clone());
        }
        self.outgoing.push_back(Outgoing { safe_with, reply });
    }

    /// Whether a message may leave.
    pub(crate) fn has_outgoing(&self) -> bool {
        self.next_outgoing().is_some()
    }

    /// The oldest message that may leave and has not.
    pub(crate) fn take_outgoing(&mut self) -> Option<Reply> {
        let next = self.next_outgoing()?;
        self.outgoing.remove(next).map(|out| out.reply)
    }

    /// Nearly always the first. While the store fails, outcomes wait and refusals pass them.
    pub(super) fn next_outgoing(&self) -> Option<usize> {
        let committed = self.journal.committed();
        self.outgoing.iter().position(|out| out.safe_with <= committed)
    }

    /// Messages to clients that have not left. Events are none: many windows may end at once, and no client can help it.
    pub(super) fn replies_waiting(&self) -> usize {
        let is_reply = |out: &&Outgoing| !matches!(out.reply.body, ReplyBody::Event(_));
        self.outgoing.iter().filter(is_reply).count()
    }

    /// Nobody takes outcomes any more.
    pub(crate) fn discard_outgoing(&mut self) -> usize {
        let lost = self.outgoing.len();
        self.outgoing.clear();
        lost
    }
}
