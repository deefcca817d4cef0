//! The messages on their way to the broker, in the order in which they leave.
//!
//! There are three classes, each a queue of its own, and they leave by turns: refusals that one client provokes, or
//! thousands of windows that end at once, must not hold up the outcomes of others where the broker is slow.

use std::collections::{BTreeMap, VecDeque};

use phi_edge_api::{JobKey, Reply, ReplyAddress, ReplyBody};
use phi_edge_rules::Time;

use super::event_stats::EventStats;
use super::message::{EventMark, MessagePlace, Outgoing, Undelivered, notice_bytes};

/// The class of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::jobs::ledger) enum Class {
    /// The outcome of a job.
    Outcome,
    /// An event of a rule.
    Event,
    /// A refusal or a dead letter.
    Notice,
}

/// The order in which the classes are served, round robin. A class without a message that may leave is skipped.
const TURN_ORDER: [Class; 4] = [Class::Outcome, Class::Event, Class::Outcome, Class::Notice];

/// The queues of messages on their way, and the messages that the broker has not acknowledged.
#[derive(Debug, Default)]
pub(in crate::jobs::ledger) struct OutgoingQueue {
    outcomes: VecDeque<Outgoing>,
    pub(super) event_queue: VecDeque<Outgoing>,
    notices: VecDeque<Outgoing>,
    /// The index in [`TURN_ORDER`] of the next turn.
    turn: usize,
    /// The memory of the queued refusals and dead letters, in bytes.
    notice_bytes: u64,
    /// The number of them that were dropped because the limit was reached.
    dropped: u64,
    /// Counters and bounds of the events.
    pub(super) events: EventStats,
    /// The durable messages that the broker has not acknowledged, queued or sent, by delivery.
    pub(super) undelivered: BTreeMap<u64, Undelivered>,
    /// The highest number of a delivery.
    deliveries: u64,
}

impl OutgoingQueue {
    /// The number of the next message that is kept until it is delivered.
    pub(super) fn next_delivery(&mut self) -> u64 {
        self.deliveries += 1;
        self.deliveries
    }

    /// Puts a message behind those of its class.
    pub(super) fn push_back(&mut self, class: Class, reply: Reply, safe_with: u64, since: Time) {
        let out = self.outgoing(class, reply, safe_with, since);
        self.class_mut(class).push_back(out);
    }

    /// Puts a message of an earlier process before those of its class.
    pub(super) fn push_front(&mut self, class: Class, reply: Reply, since: Time) {
        let out = self.outgoing(class, reply, 0, since);
        self.class_mut(class).push_front(out);
    }

    /// Whether a refusal or a dead letter of `bytes` more does not exceed `limit` bytes. One alone never does.
    pub(super) fn has_room_for_notice(&self, bytes: u64, limit: u64) -> bool {
        self.notice_bytes == 0 || self.notice_bytes + bytes <= limit
    }

    /// Counts a refusal or a dead letter that is dropped because there is no room for it.
    pub(super) fn drop_notice(&mut self) {
        if self.dropped == 0 {
            tracing::warn!(
                bytes = self.notice_bytes,
                "refusals are dropped, and their senders not told: the broker takes them slower than they come"
            );
        }
        self.dropped += 1;
    }

    /// Whether a message may leave: its batch is not behind `committed`.
    pub(super) fn has_ready(&self, committed: u64) -> bool {
        let classes = [Class::Outcome, Class::Event, Class::Notice];
        classes
            .into_iter()
            .any(|class| self.ready(class, committed).is_some())
    }

    /// Takes the next message that may leave; the expiry of an event is what is left of it.
    pub(super) fn take(&mut self, committed: u64, wall: Time) -> Option<Reply> {
        loop {
            let out = self.take_next(committed)?;
            if let Some(event) = &out.event {
                self.events.remove(event);
            }
            self.notice_bytes = self.notice_bytes.saturating_sub(out.notice_bytes);
            let reply = match out.place {
                MessagePlace::Kept(delivery) => self
                    .undelivered
                    .get(&delivery)
                    .map(|kept| kept.with_remaining_expiry(wall)),
                MessagePlace::Unkept(reply) => {
                    let since = out.event.as_ref().map_or(wall, |event| event.since);
                    Some(Undelivered { reply: *reply, since }.with_remaining_expiry(wall))
                }
            };
            // A message that was acknowledged meanwhile is skipped.
            if reply.is_some() {
                return reply;
            }
        }
    }

    /// Lets the messages of a batch leave that is not stored.
    pub(super) fn release(&mut self, batch: u64) {
        for out in self
            .outcomes
            .iter_mut()
            .chain(&mut self.event_queue)
            .chain(&mut self.notices)
        {
            if out.safe_with == batch {
                out.safe_with = 0;
            }
        }
    }

    /// The message of a queue entry; `None` if it was forgotten meanwhile.
    pub(super) fn message<'a>(&'a self, out: &'a Outgoing) -> Option<&'a Reply> {
        match &out.place {
            MessagePlace::Kept(delivery) => self.undelivered.get(delivery).map(|kept| &kept.reply),
            MessagePlace::Unkept(reply) => Some(reply),
        }
    }

    /// Whether an equal outcome has not left yet.
    pub(super) fn has_unsent(&self, key: &JobKey, address: &ReplyAddress, body: &ReplyBody) -> bool {
        let mut replies = self.outcomes.iter().filter_map(|out| self.message(out));
        replies.any(|reply| reply.key == *key && reply.address == *address && reply.body == *body)
    }

    /// Forgets a delivered message; returns whether it was kept.
    pub(super) fn delivered(&mut self, delivery: u64) -> bool {
        self.undelivered.remove(&delivery).is_some()
    }

    /// Makes the delivery numbers of an earlier process differ from those of this one. They are kept, unless the store became
    /// readable late: then the broker has messages of this process already, and those of the store get new numbers, with
    /// which it is rewritten.
    pub(in crate::jobs::ledger) fn renumber(&mut self, outbox: &mut [Reply]) {
        if self.deliveries > 0 {
            for reply in &mut *outbox {
                reply.delivery = Some(self.next_delivery());
            }
        }
        let highest = outbox.iter().filter_map(|reply| reply.delivery).max();
        self.deliveries = self.deliveries.max(highest.unwrap_or(0));
    }

    /// The unacknowledged messages, by delivery; the expiry of an event is what is left of it.
    pub(in crate::jobs::ledger) fn undelivered(&self, wall: Time) -> impl Iterator<Item = Reply> {
        self.undelivered
            .values()
            .map(move |kept| kept.with_remaining_expiry(wall))
    }

    /// The number of messages that the broker has not acknowledged.
    pub(in crate::jobs::ledger) fn undelivered_len(&self) -> usize {
        self.undelivered.len()
    }

    /// The number of queued outcomes.
    pub(in crate::jobs::ledger) fn outcomes_len(&self) -> usize {
        self.outcomes.len()
    }

    /// The number of queued messages.
    pub(in crate::jobs::ledger) fn len(&self) -> usize {
        self.outcomes.len() + self.event_queue.len() + self.notices.len()
    }

    /// The number of refusals and dead letters that were dropped because the limit was reached, since the start.
    pub(in crate::jobs::ledger) fn dropped(&self) -> u64 {
        self.dropped
    }

    /// Empties all queues.
    pub(super) fn clear(&mut self) {
        self.outcomes.clear();
        self.event_queue.clear();
        self.notices.clear();
        self.events.clear();
        self.notice_bytes = 0;
    }

    fn outgoing(&mut self, class: Class, reply: Reply, safe_with: u64, since: Time) -> Outgoing {
        let notice_bytes = match class {
            Class::Notice => notice_bytes(&reply.address, &reply.body),
            Class::Outcome | Class::Event => 0,
        };
        self.notice_bytes += notice_bytes;
        let event = EventMark::of(&reply, since);
        if let Some(event) = &event {
            self.events.add(event);
        }
        let place = match reply.delivery {
            Some(delivery) => {
                self.undelivered.insert(delivery, Undelivered { reply, since });
                MessagePlace::Kept(delivery)
            }
            None => MessagePlace::Unkept(Box::new(reply)),
        };
        Outgoing {
            safe_with,
            place,
            event,
            notice_bytes,
        }
    }

    fn take_next(&mut self, committed: u64) -> Option<Outgoing> {
        for step in 0..TURN_ORDER.len() {
            let turn = (self.turn + step) % TURN_ORDER.len();
            if let Some(index) = self.ready(TURN_ORDER[turn], committed) {
                self.turn = (turn + 1) % TURN_ORDER.len();
                return self.class_mut(TURN_ORDER[turn]).remove(index);
            }
        }
        None
    }

    /// The index of the first message of a class that may leave, nearly always 0. While the store fails, outcomes wait and
    /// messages that are not durable overtake them.
    fn ready(&self, class: Class, committed: u64) -> Option<usize> {
        self.class(class)
            .iter()
            .position(|out| out.safe_with <= committed)
    }

    fn class(&self, class: Class) -> &VecDeque<Outgoing> {
        match class {
            Class::Outcome => &self.outcomes,
            Class::Event => &self.event_queue,
            Class::Notice => &self.notices,
        }
    }

    fn class_mut(&mut self, class: Class) -> &mut VecDeque<Outgoing> {
        match class {
            Class::Outcome => &mut self.outcomes,
            Class::Event => &mut self.event_queue,
            Class::Notice => &mut self.notices,
        }
    }
}
