//! The numbers of events on their way to the broker.

use phi_edge_rules::Time;

use super::message::EventMark;

/// The numbers of queued events and of those that were not published.
#[derive(Debug, Default)]
pub(super) struct EventStats {
    waiting: usize,
    pub(super) bytes: u64,
    pub(super) counters: EventCounters,
    /// The time of the last sweep.
    pub(super) last_sweep: Option<Time>,
    /// Whether the dropping of events was logged since the queue was last empty.
    pub(super) is_drop_logged: bool,
    /// The time since which there is no connection to the broker.
    pub(super) disconnected_since: Option<Time>,
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
    pub(super) fn add(&mut self, event: &EventMark) {
        self.waiting += 1;
        self.bytes += event.bytes;
    }

    pub(super) fn remove(&mut self, event: &EventMark) {
        self.waiting = self.waiting.saturating_sub(1);
        self.bytes = self.bytes.saturating_sub(event.bytes);
        self.is_drop_logged &= self.waiting > 0;
    }

    pub(super) fn clear(&mut self) {
        (self.waiting, self.bytes) = (0, 0);
    }
}
