//! A window that has closed.

use std::ops::RangeInclusive;

use super::Checkpoint;
use crate::{FieldFacts, Time};

/// A window that has closed.
#[derive(Debug, Clone, PartialEq)]
pub struct ClosedWindow {
    /// Its group; empty where the rule has none.
    pub group: String,
    /// Its start.
    pub start: Time,
    /// Its end.
    pub end: Time,
    /// Why it closed.
    pub reason: CloseReason,
    /// Its messages.
    pub messages: u64,
    /// Bytes of their payloads.
    pub bytes: u64,
    /// Late messages of the group since its last report.
    pub late: u64,
    /// The numbers of its newest messages, at most as many as are kept, ascending by timestamp, then number.
    pub seqs: Vec<u64>,
    /// When, by the clock, it was due or the message that closed it arrived. The tick that closed it may have been later.
    pub at: Time,
    /// Facts, one for each field of the rule.
    pub facts: Vec<FieldFacts>,
    /// Stored messages that no open window needs any more: those of this rule *and of this group* whose numbers lie in
    /// one of these ranges, ascending. Other groups' messages may lie between them.
    pub forget: Vec<RangeInclusive<u64>>,
    /// The checkpoint of the group, to be stored in one step with the removal of these messages.
    pub checkpoint: Checkpoint,
}

/// The reason for which a window closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CloseReason {
    /// The watermark passed its end, or it had its number of messages.
    Due,
    /// A message met the condition, or the rate was exceeded.
    Early,
    /// It reached its limit of messages, bytes or age.
    Full,
    /// No message of the group arrived for the rule's `absence`.
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
