//! A message of the window operator, and the outcome of its ingestion.

use super::ClosedWindow;
use crate::{Time, Value};

/// A message as the window operator takes it.
#[derive(Debug, Clone, PartialEq)]
pub struct WindowMessage {
    /// Its number in the store: greater than that of every message ingested before.
    pub seq: u64,
    /// When it arrived.
    pub arrived: Time,
    /// Its event time; `None` if the rule counts by arrival, or the message has none.
    pub event_time: Option<Time>,
    /// Its group; empty where the rule has none. For a stored message: the one under which it is stored.
    pub group: String,
    /// Bytes of its payload.
    pub bytes: u64,
    /// Whether it meets the rule's `early` condition.
    pub early: bool,
    /// The values of its fields, by index into the rule's fields; each field at most once.
    pub values: Vec<(usize, Value)>,
}

/// The outcome of a message's ingestion. A caller that stores messages and checkpoints writes in this order: the
/// message if it is assigned, the changes of `closed`, the removal of the checkpoints of `evicted`, and the checkpoint
/// of the message's group if it is not assigned.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct IngestOutcome {
    /// Windows that closed, in order: those that were due before the message, then the one that it closed, which contains
    /// it.
    pub closed: Vec<ClosedWindow>,
    /// Whether the message is assigned to a window. If not, it need not be stored: [`super::WindowOperator::checkpoint`] of
    /// its group, stored in its place, makes a restart exact.
    pub assigned: bool,
    /// Whether the message counts nowhere because it could not be stored.
    pub dropped: bool,
    /// Whether the message counts in group [`super::OVERFLOW_GROUP`], under which it must be stored.
    pub overflow: bool,
    /// Groups that were evicted to make room: their stored checkpoints are to be removed.
    pub evicted: Vec<String>,
}
