//! What goes into the engine and what comes out of it.

use std::ops::RangeInclusive;

use crate::{FieldFacts, Time, Value};

/// A message, as windows see it.
#[derive(Debug, Clone, PartialEq)]
pub struct WindowMessage {
    /// Its number in the store: greater than that of every message observed before.
    pub seq: u64,
    /// When it arrived.
    pub arrived: Time,
    /// Its own time, where the rule takes time from a field and found one.
    pub event_time: Option<Time>,
    /// Its group; empty where the rule has none. For a stored message: the one under which it is stored.
    pub group: String,
    /// Bytes of its payload.
    pub bytes: u64,
    /// Whether it meets the rule's `early` condition.
    pub early: bool,
    /// What its fields hold, by index into the rule's fields; each field at most once.
    pub values: Vec<(usize, Value)>,
}

/// What became of a message. A caller that keeps messages and checkpoints writes them in this order: the message if it is
/// placed, what `closed` says, away with what is `dropped`, and the checkpoint of the group if the message is not placed.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct IngestOutcome {
    /// WindowOperator that ended, in the order in which they did: those that were due before the message, then the one that it
    /// ended, which holds it.
    pub closed: Vec<ClosedWindow>,
    /// Whether the message counts in a window. If not, it need not be stored: [`super::WindowOperator::checkpoint`] of its group, stored
    /// in its place, makes a restart exact.
    pub assigned: bool,
    /// Whether there was no room for the message, and it counts nowhere.
    pub dropped: bool,
    /// Whether the message counts in group [`super::OVERFLOW_GROUP`], under which it must be stored.
    pub overflow: bool,
    /// Groups that were forgotten to make room: checkpoints stored of them are of no more use.
    pub evicted: Vec<String>,
}

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

/// A window that ended.
#[derive(Debug, Clone, PartialEq)]
pub struct ClosedWindow {
    /// Its group; empty where the rule has none.
    pub group: String,
    /// Its start.
    pub start: Time,
    /// Its end.
    pub end: Time,
    /// Why it ended.
    pub reason: CloseReason,
    /// Its messages.
    pub messages: u64,
    /// Bytes of their payloads.
    pub bytes: u64,
    /// Messages of the group that came too late for their windows, since the group's last report.
    pub late: u64,
    /// Its newest messages, at most as many as are kept, ascending by time, then number.
    pub seqs: Vec<u64>,
    /// When, by the clock, it was due or the message came that ended it. It was looked at later where nobody watched.
    pub at: Time,
    /// Facts, one for each field of the rule.
    pub facts: Vec<FieldFacts>,
    /// Stored messages that no open window needs any more: those of this rule *and of this group* whose numbers lie in
    /// one of these ranges, ascending. Other groups' messages may lie between them.
    pub forget: Vec<RangeInclusive<u64>>,
    /// The group after this, to be stored as these messages are forgotten.
    pub checkpoint: Checkpoint,
}

/// Why a window ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CloseReason {
    /// It was its time, or its number of messages was there.
    Due,
    /// A message met the condition, or the rate was exceeded.
    Early,
    /// It reached its most messages, bytes or age.
    Full,
    /// Nothing came.
    Absence,
    /// The clock was set back.
    Clock,
    /// The rule was changed or removed.
    Reload,
}

impl CloseReason {
    /// Its name in events.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Due => "due",
            Self::Early => "early",
            Self::Full => "full",
            Self::Absence => "absence",
            Self::Clock => "clock",
            Self::Reload => "reload",
        }
    }
}
