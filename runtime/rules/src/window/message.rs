//! A message of the window operator, and the outcome of its ingestion.

use super::ClosedWindow;
use crate::{Time, Value};

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
