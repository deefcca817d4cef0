//! The record of the path to the broker: how often its connections ended by themselves.

use std::time::Duration;

use super::ReconnectDelay;

/// The round trips of a verification on a path without faults.
const MIN_ROUND_TRIPS: u32 = 16;
/// The most doublings of the round trips, one for each connection that ended by the path's fault.
const MAX_DOUBLINGS: u32 = 4;
/// The most reconnects without a backoff; a verification or a conviction gives one back.
const MAX_QUICK_RECONNECTS: u32 = 32;
/// The age of a connection after which all quick reconnects are available again.
const GOOD_CONNECTION_AGE: Duration = Duration::from_secs(5);
/// The age of a connection after which the path's faults are forgotten.
const FAULT_RETENTION: Duration = Duration::from_mins(1);

/// The record of the path.
#[derive(Debug)]
pub(super) struct PathRecord {
    faults: u32,
    quick_reconnects: u32,
}

impl PathRecord {
    pub(super) fn new() -> Self {
        Self {
            faults: 0,
            quick_reconnects: MAX_QUICK_RECONNECTS,
        }
    }

    /// Notes that a connection ended without a message to blame.
    pub(super) fn fault(&mut self) {
        self.faults = (self.faults + 1).min(MAX_DOUBLINGS);
    }

    /// Notes that a connection ended after `lived`.
    pub(super) fn lived(&mut self, lived: Duration) {
        if lived >= GOOD_CONNECTION_AGE {
            self.quick_reconnects = MAX_QUICK_RECONNECTS;
        }
        if lived >= FAULT_RETENTION {
            self.faults = 0;
        }
    }

    /// Returns the delay after a death that a message may be to blame for.
    pub(super) fn wait(&mut self) -> ReconnectDelay {
        match self.quick_reconnects.checked_sub(1) {
            Some(left) => {
                self.quick_reconnects = left;
                ReconnectDelay::Short
            }
            None => ReconnectDelay::Backoff,
        }
    }

    /// Notes that the path was not to blame for a death: a verification was clean, or a message was convicted.
    pub(super) fn cleared(&mut self) {
        self.quick_reconnects = (self.quick_reconnects + 1).min(MAX_QUICK_RECONNECTS);
    }

    /// Returns the number of controls that a verification publishes, one after the other.
    pub(super) fn round_trips(&self) -> u32 {
        MIN_ROUND_TRIPS << self.faults
    }
}
