//! The messages on their way to the broker: they leave once their changes are stored, and are forgotten once the broker has
//! acknowledged them.

mod event_stats;
mod events;
mod message;
mod queue;
#[cfg(test)]
mod tests;

use phi_edge_api::{DeadLetter, JobKey, Reply, ReplyAddress, ReplyBody, ReplyTarget};
use phi_edge_job::Receipt;
use phi_edge_rules::changes::RuleChange;
use phi_edge_rules::{Published, Time};
use phi_edge_store::Change;
use tokio::sync::oneshot;

use super::Ledger;
use crate::jobs::journal::Stored;

use message::notice_bytes;
use queue::Class;

pub(super) use queue::OutgoingQueue;

/// The most memory of refusals and dead letters that wait to leave, in bytes. A client that sends requests faster than the
/// broker takes replies must not fill the memory with them.
const MAX_NOTICE_BYTES: u64 = 8 << 20;

impl Ledger {
    /// Sends a message that is no outcome of a job: a refusal or a dead letter. It leaves when this is stored; `receipt` is
    /// recorded for redeliveries of the request.
    pub(crate) fn post(
        &mut self,
        key: JobKey,
        address: ReplyAddress,
        body: ReplyBody,
        receipt: Option<Receipt>,
    ) -> Option<Stored> {
        self.record_receipt(receipt);
        let bytes = notice_bytes(&address, &body);
        if self.outgoing.has_room_for_notice(bytes, MAX_NOTICE_BYTES) {
            self.send_as(Class::Notice, key, address, body, Time::default());
        } else {
            self.outgoing.drop_notice();
        }
        self.journal.send_and_wait()
    }

    /// Sends a dead letter to the operator.
    pub(crate) fn dead_letter(&mut self, key: JobKey, letter: DeadLetter) {
        self.send_letter(key, letter);
        self.journal.send();
    }

    /// Lets the messages of a batch leave although it is not stored: refusals and dead letters need not be.
    pub(crate) fn leave_unstored(&mut self, batch: u64) {
        self.outgoing.release(batch);
    }

    /// Forgets a message that the broker has acknowledged.
    pub(crate) fn delivered(&mut self, delivery: u64) {
        if self.outgoing.delivered(delivery) {
            self.journal.note(Change::Delivered(delivery));
            self.journal.send();
        }
    }

    /// Sends the outcome of a job to `listener`, within this process: now, or when it is decided.
    pub(crate) fn listen(&mut self, key: &JobKey, listener: oneshot::Sender<ReplyBody>) {
        self.outcomes.listen(key, listener);
    }

    /// Drops the listener for the outcome of a job.
    pub(crate) fn unlisten(&mut self, key: &JobKey) {
        self.outcomes.unlisten(key);
    }

    /// Queues an event, and forgets the jobs that summarised it. All of it is stored in one batch.
    pub(crate) fn publish_event(
        &mut self,
        published: Published,
        change: RuleChange,
        jobs: &[JobKey],
        wall: Time,
    ) {
        let key = JobKey {
            client: None,
            id: published.event.event_id.clone(),
        };
        let address = ReplyAddress::from(ReplyTarget::Topic(published.output.topic.clone()));
        self.send_as(
            Class::Event,
            key,
            address,
            ReplyBody::Event(Box::new(published)),
            wall,
        );
        self.make_room_for_events(wall);
        self.journal.note(Change::Rule(change));
        for key in jobs {
            self.forget(key);
        }
        self.journal.send();
    }

    /// Queues an outcome, and records it in the journal.
    pub(super) fn send(&mut self, key: JobKey, address: ReplyAddress, body: ReplyBody) {
        // The time matters for the expiry of events alone.
        self.send_as(Class::Outcome, key, address, body, Time::default());
    }

    /// Queues a dead letter, and records it in the journal.
    pub(super) fn send_letter(&mut self, key: JobKey, letter: DeadLetter) {
        let (address, body) = (ReplyAddress::nowhere(), ReplyBody::DeadLetter(letter));
        self.send_as(Class::Notice, key, address, body, Time::default());
    }

    fn send_as(&mut self, class: Class, key: JobKey, address: ReplyAddress, body: ReplyBody, since: Time) {
        let delivery = self.journal.is_durable().then(|| self.outgoing.next_delivery());
        let reply = Reply {
            key,
            address,
            body,
            delivery,
        };
        let mut safe_with = 0;
        if delivery.is_some() {
            safe_with = self.journal.number();
            self.journal.note(Change::Post(Box::new(reply.clone())));
        }
        self.outgoing.push_back(class, reply, safe_with, since);
    }

    /// Queues a message of an earlier process before all others of its class. `is_outcome` tells the error of a job that was
    /// accepted from a refusal.
    pub(super) fn restore_message(&mut self, reply: Reply, is_outcome: bool, since: Time) {
        let class = match &reply.body {
            ReplyBody::Event(_) => Class::Event,
            ReplyBody::Error(_) if !is_outcome => Class::Notice,
            ReplyBody::DeadLetter(_) => Class::Notice,
            ReplyBody::Chunk { .. } | ReplyBody::Final(_) | ReplyBody::Error(_) => Class::Outcome,
        };
        self.outgoing.push_front(class, reply, since);
    }

    /// Whether an equal outcome has not left yet.
    pub(super) fn has_unsent_outcome(&self, key: &JobKey, address: &ReplyAddress, body: &ReplyBody) -> bool {
        self.outgoing.has_unsent(key, address, body)
    }

    /// Whether a message may leave.
    pub(crate) fn has_outgoing(&self) -> bool {
        self.outgoing.has_ready(self.journal.committed())
    }

    /// The next message that may leave; of an event, with what is left of its expiry.
    pub(crate) fn take_outgoing(&mut self, wall: Time) -> Option<Reply> {
        self.outgoing.take(self.journal.committed(), wall)
    }

    /// The number of outcomes that have not left. Events do not count: many windows may end at once, and a client must not be
    /// refused for them.
    pub(super) fn unsent_outcomes(&self) -> usize {
        self.outgoing.outcomes_len()
    }

    /// Forgets all messages that have not left: nothing takes them any more. Returns their number.
    pub(crate) fn discard_outgoing(&mut self) -> usize {
        let lost = self.outgoing.len();
        self.outgoing.clear();
        lost
    }
}
