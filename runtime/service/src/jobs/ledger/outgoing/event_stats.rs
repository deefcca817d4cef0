//! The numbers of events on their way.

use phi_edge_rules::Time;

use super::message::EventMark;

/// The numbers of the events that wait, and of those that were not published.
#[derive(Debug, Default)]
pub(super) struct EventStats {
    waiting: usize,
    pub(super) bytes: u64,
    pub(super) counters: EventCounters,
    /// When they were last looked through.
    pub(super) swept: Option<Time>,
    /// That events are dropped for want of room was logged.
    pub(super) told: bool,
    /// Since when there is no connection to the broker.
    pub(super) away_since: Option<Time>,
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

impl EventStats {
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
