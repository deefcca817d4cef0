//! How far the path to the broker can be trusted, as its connections have shown.

use std::time::Duration;

use super::ReconnectDelay;

/// Round trips of a verification on a path that has shown no fault by itself.
const MIN_ROUND_TRIPS: u32 = 16;
/// How often they double at most, once for each connection that ended by the path's fault.
const MAX_DOUBLINGS: u32 = 4;
/// Connections that may be made again at once; those that brought something are given back.
const MAX_QUICK_RECONNECTS: u32 = 32;
/// A connection that lived as long was a good one.
const GOOD_CONNECTION_AGE: Duration = Duration::from_secs(5);
/// After so long a life the path's earlier faults are forgotten.
const FAULT_RETENTION: Duration = Duration::from_mins(1);

/// The path's record.
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

    /// A connection ended without a message being to blame.
    pub(super) fn fault(&mut self) {
        self.faults = (self.faults + 1).min(MAX_DOUBLINGS);
    }

    /// A connection ended after `lived`.
    pub(super) fn lived(&mut self, lived: Duration) {
        if lived >= GOOD_CONNECTION_AGE {
            self.quick_reconnects = MAX_QUICK_RECONNECTS;
        }
        if lived >= FAULT_RETENTION {
            self.faults = 0;
        }
    }

    /// How long to wait after a death that a message may be to blame for.
    pub(super) fn wait(&mut self) -> ReconnectDelay {
        match self.quick_reconnects.checked_sub(1) {
            Some(left) => {
                self.quick_reconnects = left;
                ReconnectDelay::Short
            }
            None => ReconnectDelay::Backoff,
        }
    }

    /// A verification was clean, or a message was convicted: the path is not to blame for a death before.
    pub(super) fn cleared(&mut self) {
        self.quick_reconnects = (self.quick_reconnects + 1).min(MAX_QUICK_RECONNECTS);
    }

    /// How many control publishes must be acknowledged, one after the other, to hold a death against a message.
    pub(super) fn round_trips(&self) -> u32 {
        MIN_ROUND_TRIPS << self.faults
    }
}
