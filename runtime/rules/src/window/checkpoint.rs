//! The checkpoint of a group.

use crate::Time;

/// What must be known of a group besides its stored messages.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Checkpoint {
    /// The newest message seen when the checkpoint was made. Stored messages up to it are in windows already, and end none.
    pub seq: Option<u64>,
    /// What lies before it is closed (for sessions: unless an open one holds it).
    pub closed_until: Option<Time>,
    /// Periods of which a first part has closed, and that go on. Not more than can be open at once.
    pub remainders: Vec<PeriodRemainder>,
    /// Neither `early` nor `early_rate` ends a window before.
    pub cool_until: Option<Time>,
    /// When the group's newest message arrived.
    pub last_seen: Option<Time>,
    /// Whether its absence was reported, and nothing came since.
    pub absent: bool,
    /// Messages that came after their window had closed, since the last report of the group.
    pub late: u64,
    /// Empty windows from here on are still to be reported.
    pub empty_from: Option<Time>,
}

/// A period whose first part has closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeriodRemainder {
    /// When the further part begins.
    pub from: Time,
    /// When the period ends.
    pub end: Time,
}
