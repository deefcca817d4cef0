//! The numbers of events on their way to the broker.

use std::time::Duration;

use phi_edge_rules::Time;

use super::message::EventMark;

/// The numbers of queued events and of those that were not published, and the times that their bounds depend on.
#[derive(Debug, Default)]
pub(super) struct EventStats {
    waiting: usize,
    bytes: u64,
    counters: EventCounters,
    /// The time of the last sweep.
    last_sweep: Option<Time>,
    /// Whether the dropping of events was logged since the queue was last empty.
    is_drop_logged: bool,
    /// The time since which there is no connection to the broker.
    disconnected_since: Option<Time>,
}

/// Events that were not published, since the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct EventCounters {
    /// Those whose expiry had passed.
    pub(crate) expired: u64,
    /// Those of a retained topic that had a newer event.
    pub(crate) superseded: u64,
    /// Those that exceeded the limit in bytes.
    pub(crate) dropped: u64,
}

impl EventStats {
    /// The memory of the queued events, in bytes.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The numbers of events that were not published.
    pub(super) fn counters(&self) -> EventCounters {
        self.counters
    }

    /// Adds an event to those that are queued.
    pub(super) fn add(&mut self, event: &EventMark) {
        self.waiting += 1;
        self.bytes += event.bytes;
    }

    /// Removes an event from those that are queued.
    pub(super) fn remove(&mut self, event: &EventMark) {
        self.waiting = self.waiting.saturating_sub(1);
        self.bytes = self.bytes.saturating_sub(event.bytes);
        self.is_drop_logged &= self.waiting > 0;
    }

    /// Counts an event whose expiry has passed.
    pub(super) fn record_expired(&mut self) {
        self.counters.expired += 1;
    }

    /// Counts an event that a newer one has replaced.
    pub(super) fn record_superseded(&mut self) {
        self.counters.superseded += 1;
    }

    /// Counts an event that exceeded the limit; returns whether it is the first since the queue was last empty.
    pub(super) fn record_dropped(&mut self) -> bool {
        self.counters.dropped += 1;
        !std::mem::replace(&mut self.is_drop_logged, true)
    }

    /// Whether a sweep is due, `interval` after the last one; notes its time if so.
    pub(super) fn start_sweep_if_due(&mut self, wall: Time, interval: Duration) -> bool {
        // The wall clock may have been set back.
        let last = self.last_sweep.filter(|last| *last <= wall);
        let is_due = last.is_none_or(|last| wall.since(last) >= interval);
        if is_due {
            self.last_sweep = Some(wall);
        }
        is_due
    }

    /// Sets whether there is a connection to the broker.
    pub(super) fn set_connected(&mut self, connected: bool, wall: Time) {
        if connected {
            self.disconnected_since = None;
        } else {
            self.disconnected_since.get_or_insert(wall);
        }
    }

    /// Whether there has been no connection to the broker for `threshold`.
    pub(super) fn is_disconnected_for(&self, threshold: Duration, wall: Time) -> bool {
        self.disconnected_since
            .is_some_and(|since| wall.since(since) >= threshold)
    }

    /// Forgets all queued events.
    pub(super) fn clear(&mut self) {
        (self.waiting, self.bytes) = (0, 0);
    }
}
