//! The queued events of rules, and their bounds while the broker is unreachable.
//!
//! Windows end without the broker, and a window can't be refused. So the queue has a bound in bytes, beyond which the oldest
//! events are dropped. An event whose expiry has passed is removed, as a broker would do; and of the retained events of a
//! topic, of which a broker keeps the newest, older ones are removed during a long outage.

use std::collections::HashSet;
use std::time::Duration;

use phi_edge_rules::Time;
use phi_edge_store::Change;

use super::event_stats::EventCounters;
use super::message::MessagePlace;
use super::queue::OutgoingQueue;
use crate::jobs::journal::Journal;
use crate::jobs::ledger::Ledger;

/// The outage of the broker after which retained events are reduced to the newest of a topic; an event that has waited as
/// long is not being transmitted.
const STALL_THRESHOLD: Duration = Duration::from_secs(5);

/// The shortest time between two sweeps of the events: tens of thousands may wait, and a sweep visits all.
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);

/// The reason for which an event is not published.
#[derive(Debug, Clone, Copy)]
enum Unpublished {
    Expired,
    Superseded,
}

impl Ledger {
    /// The numbers of events that were not published, since the start.
    pub(crate) fn event_counters(&self) -> EventCounters {
        self.outgoing.events.counters()
    }

    /// The memory of the queued events, in bytes.
    pub(crate) fn event_bytes(&self) -> u64 {
        self.outgoing.events.bytes()
    }

    /// Forgets and counts an event whose expiry has passed in the link.
    pub(crate) fn event_expired(&mut self, delivery: Option<u64>) {
        self.outgoing.events.record_expired();
        if let Some(delivery) = delivery {
            self.delivered(delivery);
        }
    }

    /// As [`Ledger::sweep_events`], at most once in [`SWEEP_INTERVAL`].
    pub(crate) fn sweep_events_in_time(&mut self, wall: Time) {
        self.outgoing.sweep_events_in_time(wall, &mut self.journal);
    }

    /// Forgets events that need not be published any more.
    pub(crate) fn sweep_events(&mut self, wall: Time) {
        self.outgoing.sweep_events(wall, &mut self.journal);
    }

    /// Sets whether there is a connection to the broker.
    pub(crate) fn set_connected(&mut self, connected: bool, wall: Time) {
        self.outgoing.events.set_connected(connected, wall);
    }

    /// Forgets the oldest events where they exceed the limit in bytes.
    pub(super) fn make_room_for_events(&mut self, wall: Time) {
        let limit = self.limits.event_bytes;
        self.outgoing.make_room_for_events(limit, wall, &mut self.journal);
    }
}

impl OutgoingQueue {
    fn sweep_events_in_time(&mut self, wall: Time, journal: &mut Journal) {
        if self.events.start_sweep_if_due(wall, SWEEP_INTERVAL) {
            self.sweep_events(wall, journal);
        }
    }

    fn sweep_events(&mut self, wall: Time, journal: &mut Journal) {
        if self.event_queue.is_empty() {
            return;
        }
        for (index, why) in self.unpublished(wall) {
            match why {
                Unpublished::Expired => self.events.record_expired(),
                Unpublished::Superseded => self.events.record_superseded(),
            }
            self.forget_event(index, journal);
        }
        self.event_queue.retain(|out| out.safe_with != REMOVED_BATCH);
        journal.send();
    }

    fn make_room_for_events(&mut self, limit: u64, wall: Time, journal: &mut Journal) {
        if self.events.bytes() <= limit {
            return;
        }
        self.sweep_events_in_time(wall, journal);
        while self.events.bytes() > limit && self.event_queue.len() > 1 {
            if self.events.record_dropped() {
                tracing::warn!(
                    events = self.event_queue.len(),
                    bytes = self.events.bytes(),
                    "the oldest events of rules are dropped: more wait for the broker than there is room for \
                     (a quarter of store.max_size, at most 64 MiB)"
                );
            }
            self.forget_event(0, journal);
            self.event_queue.pop_front();
        }
    }

    /// The indices of events that need not be published, with the reasons.
    fn unpublished(&self, wall: Time) -> Vec<(usize, Unpublished)> {
        let mut gone = Vec::new();
        let mut newer: HashSet<&str> = HashSet::new();
        let is_outage = self.events.is_disconnected_for(STALL_THRESHOLD, wall);
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
            if !first && is_outage && wall.since(event.since) >= STALL_THRESHOLD {
                gone.push((index, Unpublished::Superseded));
            }
        }
        gone
    }

    /// Forgets the event of an index. Its entry stays, marked for removal.
    fn forget_event(&mut self, index: usize, journal: &mut Journal) {
        let Some(out) = self.event_queue.get_mut(index) else {
            return;
        };
        out.safe_with = REMOVED_BATCH;
        if let Some(event) = &out.event {
            self.events.remove(event);
        }
        if let MessagePlace::Kept(delivery) = out.place {
            self.undelivered.remove(&delivery);
            journal.note(Change::Delivered(delivery));
        }
    }
}

/// The batch number that marks an event for removal from the queue.
const REMOVED_BATCH: u64 = u64::MAX;
