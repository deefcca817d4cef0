//! A window that has closed.

use std::ops::RangeInclusive;

use super::Checkpoint;
use crate::{FieldFacts, Time};

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
