//! The checkpoint of a group: what a restart needs beside its stored messages.

use crate::Time;

/// The checkpoint of a group. With the stored messages of its open windows it restores the group.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Checkpoint {
    /// The newest message when the checkpoint was made. Stored messages up to it were assigned before, and close no window.
    pub seq: Option<u64>,
    /// Windows before it have closed (for sessions: unless an open one contains it).
    pub closed_until: Option<Time>,
    /// Periods whose first part has closed early and that go on. Not more than can be open at once.
    pub remainders: Vec<PeriodRemainder>,
    /// Until then neither `early` nor `early_rate` closes a window.
    pub cool_until: Option<Time>,
    /// When the group's newest message arrived.
    pub last_seen: Option<Time>,
    /// Whether its absence was reported, and no message arrived since.
    pub absent: bool,
    /// Messages that came after their window had closed, since the last report of the group.
    pub late: u64,
    /// The start of the first empty window that is not reported yet.
    pub empty_from: Option<Time>,
}

/// The remainder of a period whose first part has closed early.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeriodRemainder {
    /// The start of the remainder.
    pub from: Time,
    /// The end of the period.
    pub end: Time,
}
