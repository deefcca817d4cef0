//! Events of rules that wait to be published: how much of them is kept while the broker is away.
//!
//! Windows end without the broker, and a window can't be refused. So what waits has a bound in bytes, beyond which the oldest
//! events go; their own expiry is honoured here as a broker would; and of retained events, of which a broker keeps the
//! newest, only that is kept where others have waited long.

use std::collections::HashSet;
use std::time::Duration;

use phi_edge_api::{Reply, ReplyBody};
use phi_edge_rules::Time;
use phi_edge_store::Change;

use super::queue::{Message, OutgoingQueue, Undelivered};
use crate::jobs::journal::Journal;
use crate::jobs::ledger::Ledger;

/// A broker that has been away for so long does not come back at once; an event that has waited as long is not on its way.
const STALLED: Duration = Duration::from_secs(5);

/// Tens of thousands may wait: they are looked through so often.
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);

/// What is known of an event that waits.
#[derive(Debug)]
pub(super) struct EventMark {
    bytes: u64,
    since: Time,
    expiry: Option<Duration>,
    retained: bool,
}

/// Events among the messages that leave.
#[derive(Debug, Default)]
pub(super) struct Events {
    waiting: usize,
    bytes: u64,
    counters: EventCounters,
    /// When they were last looked through.
    swept: Option<Time>,
    /// That events are dropped for want of room was logged.
    told: bool,
    /// Since when there is no connection to the broker.
    away_since: Option<Time>,
}

/// Events that were not published, since the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct EventCounters {
    /// Their expiry had passed.
    pub(crate) expired: u64,
    /// A newer one was to be retained in their place.
    pub(crate) superseded: u64,
    /// There was no room for more.
    pub(crate) dropped: u64,
}

#[derive(Debug, Clone, Copy)]
enum Unpublished {
    Expired,
    Superseded,
}

impl EventMark {
    /// None of what is no event.
    pub(super) fn of(reply: &Reply, since: Time) -> Option<Self> {
        let ReplyBody::Event(published) = &reply.body else {
            return None;
        };
        Some(Self {
            bytes: published.cost(),
            since,
            expiry: published.output.expiry,
            retained: published.output.retain,
        })
    }

    pub(super) fn since(&self) -> Time {
        self.since
    }

    fn is_expired(&self, wall: Time) -> bool {
        self.expiry.is_some_and(|expiry| wall.since(self.since) >= expiry)
    }
}

impl Events {
    pub(super) fn came(&mut self, event: &EventMark) {
        self.waiting += 1;
        self.bytes += event.bytes;
    }

    pub(super) fn left(&mut self, event: &EventMark) {
        self.waiting = self.waiting.saturating_sub(1);
        self.bytes = self.bytes.saturating_sub(event.bytes);
        self.told &= self.waiting > 0;
    }

    pub(super) fn clear(&mut self) {
        (self.waiting, self.bytes) = (0, 0);
    }
}

impl Undelivered {
    /// The message; of an event, with what is left of its expiry.
    pub(super) fn left(&self, wall: Time) -> Reply {
        let mut reply = self.reply.clone();
        if let ReplyBody::Event(published) = &mut reply.body
            && let Some(expiry) = &mut published.output.expiry
        {
            *expiry = expiry.saturating_sub(wall.since(self.since));
        }
        reply
    }
}

impl Ledger {
    /// Events that were not published, since the start.
    pub(crate) fn event_counters(&self) -> EventCounters {
        self.outgoing.events.counters
    }

    /// What the events cost that wait to be published, in bytes.
    pub(crate) fn event_bytes(&self) -> u64 {
        self.outgoing.events.bytes
    }

    /// The event's expiry has passed on its way to the broker.
    pub(crate) fn expired(&mut self, delivery: Option<u64>) {
        self.outgoing.events.counters.expired += 1;
        if let Some(delivery) = delivery {
            self.delivered(delivery);
        }
    }

    /// As [`Ledger::sweep_events`], if it is time to look again.
    pub(crate) fn sweep_events_in_time(&mut self, wall: Time) {
        self.outgoing.sweep_events_in_time(wall, &mut self.journal);
    }

    /// Forgets events that need not be published any more.
    pub(crate) fn sweep_events(&mut self, wall: Time) {
        self.outgoing.sweep_events(wall, &mut self.journal);
    }

    /// Whether there is a connection to the broker.
    pub(crate) fn set_connected(&mut self, connected: bool, wall: Time) {
        if connected {
            self.outgoing.events.away_since = None;
        } else {
            self.outgoing.events.away_since.get_or_insert(wall);
        }
    }

    /// Forgets the oldest events where there are more than there is room for.
    pub(super) fn make_room_for_events(&mut self, wall: Time) {
        let limit = self.limits.event_bytes;
        self.outgoing.make_room_for_events(limit, wall, &mut self.journal);
    }
}

impl OutgoingQueue {
    fn sweep_events_in_time(&mut self, wall: Time, journal: &mut Journal) {
        let before = self.events.swept.filter(|before| *before <= wall);
        if before.is_none_or(|before| wall.since(before) >= SWEEP_INTERVAL) {
            self.events.swept = Some(wall);
            self.sweep_events(wall, journal);
        }
    }

    fn sweep_events(&mut self, wall: Time, journal: &mut Journal) {
        if self.event_queue.is_empty() {
            return;
        }
        for (index, why) in self.unpublished(wall) {
            match why {
                Unpublished::Expired => self.events.counters.expired += 1,
                Unpublished::Superseded => self.events.counters.superseded += 1,
            }
            self.forget_event(index, journal);
        }
        self.event_queue.retain(|out| out.safe_with != FORGOTTEN);
        journal.send();
    }

    fn make_room_for_events(&mut self, limit: u64, wall: Time, journal: &mut Journal) {
        if self.events.bytes <= limit {
            return;
        }
        self.sweep_events_in_time(wall, journal);
        while self.events.bytes > limit && self.event_queue.len() > 1 {
            if !self.events.told {
                self.events.told = true;
                tracing::warn!(
                    events = self.event_queue.len(),
                    bytes = self.events.bytes,
                    "the oldest events of rules are dropped: more wait for the broker than there is room for \
                     (a quarter of store.max_size, at most 64 MiB)"
                );
            }
            self.events.counters.dropped += 1;
            self.forget_event(0, journal);
            self.event_queue.pop_front();
        }
    }

    /// Places of events that need not be published, and why.
    fn unpublished(&self, wall: Time) -> Vec<(usize, Unpublished)> {
        let mut gone = Vec::new();
        let mut newer: HashSet<&str> = HashSet::new();
        let is_away = self
            .events
            .away_since
            .is_some_and(|since| wall.since(since) >= STALLED);
        for (index, out) in self.event_queue.iter().enumerate().rev() {
            let Some(event) = &out.event else { continue };
            if event.is_expired(wall) {
                gone.push((index, Unpublished::Expired));
                continue;
            }
            let Some(reply) = self.message(out).filter(|_| event.retained) else {
                continue;
            };
            let first = newer.insert(reply.address.topic().unwrap_or_default());
            if !first && is_away && wall.since(event.since) >= STALLED {
                gone.push((index, Unpublished::Superseded));
            }
        }
        gone
    }

    /// Forgets the event of that place, but for the place itself.
    fn forget_event(&mut self, index: usize, journal: &mut Journal) {
        let Some(out) = self.event_queue.get_mut(index) else {
            return;
        };
        out.safe_with = FORGOTTEN;
        if let Some(event) = &out.event {
            self.events.left(event);
        }
        if let Message::Kept(delivery) = out.message {
            self.undelivered.remove(&delivery);
            journal.note(Change::Delivered(delivery));
        }
    }
}

/// The batch of an event that is to be taken out of the queue.
const FORGOTTEN: u64 = u64::MAX;
