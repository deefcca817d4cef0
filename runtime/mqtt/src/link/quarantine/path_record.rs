//! How far the path to the broker can be trusted, as its connections have shown.

use std::time::Duration;

use super::Wait;

/// Round trips of a verification on a path that has shown no fault by itself.
const ROUND_TRIPS: u32 = 16;
/// How often they double at most, once for each connection that ended by the path's fault.
const DOUBLINGS: u32 = 4;
/// Connections that may be made again at once; those that brought something are given back.
const AT_ONCE: u32 = 32;
/// A connection that lived as long was a good one.
const GOOD: Duration = Duration::from_secs(5);
/// After so long a life the path's earlier faults are forgotten.
const FORGOTTEN: Duration = Duration::from_mins(1);

/// The path's record.
#[derive(Debug)]
pub(super) struct Path {
    faults: u32,
    at_once: u32,
}

impl Path {
    pub(super) fn new() -> Self {
        Self {
            faults: 0,
            at_once: AT_ONCE,
        }
    }

    /// A connection ended without a message being to blame.
    pub(super) fn fault(&mut self) {
        self.faults = (self.faults + 1).min(DOUBLINGS);
    }

    /// A connection ended after `lived`.
    pub(super) fn lived(&mut self, lived: Duration) {
        if lived >= GOOD {
            self.at_once = AT_ONCE;
        }
        if lived >= FORGOTTEN {
            self.faults = 0;
        }
    }

    /// How long to wait after a death that a message may be to blame for.
    pub(super) fn wait(&mut self) -> Wait {
        match self.at_once.checked_sub(1) {
            Some(left) => {
                self.at_once = left;
                Wait::Short
            }
            None => Wait::Backoff,
        }
    }

    /// A verification was clean, or a message was convicted: the path is not to blame for a death before.
    pub(super) fn cleared(&mut self) {
        self.at_once = (self.at_once + 1).min(AT_ONCE);
    }

    /// How many control publishes must be acknowledged, one after the other, to hold a death against a message.
    pub(super) fn round_trips(&self) -> u32 {
        ROUND_TRIPS << self.faults
    }
}
