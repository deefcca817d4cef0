//! Messages on their way: they leave once the journal is safe, and are forgotten once the broker has them.

use tokio::sync::oneshot;

use super::events::EventMark;
use super::{Leaving, Ledger, Outgoing, State, Undelivered};
use crate::job::{JobKey, ReplyAddress};
use crate::journal::Stored;
use crate::reply::{DeadLetter, Reply, ReplyBody};
use crate::store::Change;
use phi_edge_job::Receipt;
use phi_edge_rules::changes::RuleChange;
use phi_edge_rules::{Published, Time};

/// What refusals and dead letters may take that wait to leave, in bytes. A client that sends more than the broker takes from
/// us must not fill the memory with answers.
const NOTICES: u64 = 8 << 20;
/// What one takes beside its content.
const NOTICE: u64 = 512;

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
        let bytes = NOTICE + (address.topic.len() + address.correlation.as_ref().map_or(0, Vec::len)) as u64;
        let bytes = bytes + body.texts();
        if self.notices > 0 && self.notices + bytes > NOTICES {
            if self.notices_dropped == 0 {
                tracing::warn!(
                    bytes = self.notices,
                    "refusals are dropped, and their senders not told: the broker takes them slower than they come"
                );
            }
            self.notices_dropped += 1;
        } else {
            self.notices += bytes;
            self.notices_waiting += 1;
            self.send(key, address, body);
            if let Some(out) = self.outgoing.back_mut() {
                out.notice = Some(bytes);
            }
        }
        self.journal.send_and_wait()
    }

    /// Sends a letter to the operator; it promises nothing to a client.
    pub(crate) fn dead_letter(&mut self, key: JobKey, letter: DeadLetter) {
        self.send(key, ReplyAddress::nowhere(), ReplyBody::DeadLetter(letter));
        self.journal.send();
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
        let address = ReplyAddress {
            topic: published.output.topic.clone(),
            correlation: None,
            traceparent: None,
        };
        self.send_at(key, address, ReplyBody::Event(Box::new(published)), wall);
        self.make_room_for_events(wall);
        self.journal.note(Change::Rule(change));
        for key in jobs {
            self.forget(key);
        }
        self.journal.send();
    }

    /// Puts a message among those that leave, and in the journal.
    pub(super) fn send(&mut self, key: JobKey, address: ReplyAddress, body: ReplyBody) {
        // Only the expiry of events counts from then.
        self.send_at(key, address, body, Time::default());
    }

    fn send_at(&mut self, key: JobKey, address: ReplyAddress, body: ReplyBody, since: Time) {
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
        if delivery.is_some() {
            safe_with = self.journal.number();
            self.journal.note(Change::Post(Box::new(reply.clone())));
        }
        let out = self.outgoing(reply, safe_with, since);
        self.outgoing.push_back(out);
    }

    /// Puts a message of an earlier process before all others.
    pub(super) fn send_again(&mut self, reply: Reply, since: Time) {
        let out = self.outgoing(reply, 0, since);
        self.outgoing.push_front(out);
    }

    fn outgoing(&mut self, reply: Reply, safe_with: u64, since: Time) -> Outgoing {
        let event = EventMark::of(&reply, since);
        if let Some(event) = &event {
            self.events.came(event);
        }
        let leaving = match reply.delivery {
            Some(delivery) => {
                self.undelivered.insert(delivery, Undelivered { reply, since });
                Leaving::Kept(delivery)
            }
            None => Leaving::Alone(Box::new(reply)),
        };
        Outgoing {
            safe_with,
            leaving,
            event,
            notice: None,
        }
    }

    /// The message itself; none of one that was forgotten meanwhile.
    pub(super) fn message<'a>(&'a self, out: &'a Outgoing) -> Option<&'a Reply> {
        match &out.leaving {
            Leaving::Kept(delivery) => self.undelivered.get(delivery).map(|kept| &kept.reply),
            Leaving::Alone(reply) => Some(reply),
        }
    }

    /// Whether such a message has not left yet.
    pub(super) fn is_leaving(&self, key: &JobKey, address: &ReplyAddress, body: &ReplyBody) -> bool {
        let outcomes = self.outgoing.iter().filter(|out| out.event.is_none());
        outcomes
            .filter_map(|out| self.message(out))
            .any(|reply| reply.key == *key && reply.address == *address && reply.body == *body)
    }

    /// Whether a message may leave.
    pub(crate) fn has_outgoing(&self) -> bool {
        self.next_outgoing().is_some()
    }

    /// The oldest message that may leave and has not; of an event, with what is left of its expiry.
    pub(crate) fn take_outgoing(&mut self, wall: Time) -> Option<Reply> {
        loop {
            let next = self.next_outgoing()?;
            let out = self.outgoing.remove(next)?;
            if let Some(event) = &out.event {
                self.events.left(event);
            }
            self.notices = self.notices.saturating_sub(out.notice.unwrap_or(0));
            self.notices_waiting -= usize::from(out.notice.is_some());
            let reply = match out.leaving {
                Leaving::Kept(delivery) => self.undelivered.get(&delivery).map(|kept| kept.left(wall)),
                Leaving::Alone(reply) => {
                    let since = out.event.as_ref().map_or(wall, EventMark::since);
                    Some(Undelivered { reply: *reply, since }.left(wall))
                }
            };
            if reply.is_some() {
                return reply;
            }
        }
    }

    /// Nearly always the first. While the store fails, outcomes wait and refusals pass them.
    pub(super) fn next_outgoing(&self) -> Option<usize> {
        let committed = self.journal.committed();
        self.outgoing.iter().position(|out| out.safe_with <= committed)
    }

    /// Messages to clients that have not left. Events are none: many windows may end at once, and no client can help it.
    pub(super) fn replies_waiting(&self) -> usize {
        let others = self.events.waiting() + self.notices_waiting;
        self.outgoing.len().saturating_sub(others)
    }

    /// Nobody takes outcomes any more.
    pub(crate) fn discard_outgoing(&mut self) -> usize {
        let lost = self.outgoing.len();
        self.outgoing.clear();
        self.events.clear();
        self.notices = 0;
        self.notices_waiting = 0;
        lost
    }
}
