//! The engine's clock, and the hold of event time after a restart.

use std::time::Duration;

use super::RuleEngine;
use crate::Time;
use crate::changes::RuleChange;

/// A step of the wall clock backwards up to this long is waited out; a longer one means that the clock was set.
const MAX_CLOCK_JITTER: Duration = Duration::from_secs(1);
/// Event time is held after a restart until no message has arrived for this long: the broker's backlog is then read.
const HOLD_QUIET_PERIOD: Duration = Duration::from_secs(2);
/// The longest hold of event time after a restart.
const MAX_HOLD: Duration = Duration::from_secs(30);

/// The latest wall time, and whether event time is held.
#[derive(Debug, Default)]
pub(super) struct EngineClock {
    /// None before the first reading.
    latest: Option<Time>,
    /// Set while the backlog that waits at the broker is read.
    hold: Option<EventTimeHold>,
}

/// A hold of event time: no watermark advances until it ends.
#[derive(Debug, Clone, Copy)]
struct EventTimeHold {
    ends_at: Time,
    latest_end: Time,
}

/// A reading of the engine's clock.
struct ClockReading {
    now: Time,
    /// The time by which the wall clock was set back, if it was.
    set_back: Option<Duration>,
}

impl EngineClock {
    pub(super) fn latest(&self) -> Option<Time> {
        self.latest
    }

    /// When the hold of event time ends, if it is held.
    pub(super) fn hold_end(&self) -> Option<Time> {
        self.hold.map(|hold| hold.ends_at)
    }

    /// Puts the end of a hold off: a message has arrived.
    pub(super) fn extend_hold(&mut self, now: Time) {
        if let Some(hold) = &mut self.hold {
            hold.ends_at = now.after(HOLD_QUIET_PERIOD).min(hold.latest_end);
        }
    }

    /// The clock is not earlier than `time`.
    pub(super) fn raise(&mut self, time: Time) {
        self.latest = self.latest.max(Some(time));
    }

    /// The engine's time: monotonic unless the wall clock was set back.
    fn advance(&mut self, wall: Time) -> ClockReading {
        let Some(before) = self.latest.filter(|before| *before > wall) else {
            self.latest = Some(wall);
            return ClockReading {
                now: wall,
                set_back: None,
            };
        };
        let back = before.since(wall);
        if back <= MAX_CLOCK_JITTER {
            return ClockReading {
                now: before,
                set_back: None,
            };
        }
        self.latest = Some(wall);
        self.hold = self.hold.map(|_| EventTimeHold::starting_at(wall));
        ClockReading {
            now: wall,
            set_back: Some(back),
        }
    }
}

impl RuleEngine {
    /// The engine's time at `wall`. If the clock was set back, windows that begin later close.
    pub(super) fn advance_clock(&mut self, wall: Time, changes: &mut Vec<RuleChange>) -> Time {
        let reading = self.clock.advance(wall);
        let Some(back) = reading.set_back else {
            return reading.now;
        };
        tracing::warn!(
            by_s = back.as_secs_f64(),
            "the wall clock was set back; windows that would lie in the future end now"
        );
        self.pending.set_back(wall);
        let names: Vec<String> = self.rules.keys().cloned().collect();
        for name in names {
            let Some(state) = self.rules.get_mut(&name) else {
                continue;
            };
            let closed = state.windows.set_back(wall);
            self.emit(&name, closed, wall, changes);
            if let Some(state) = self.rules.get(&name) {
                let checkpoints = state.windows.checkpoints();
                changes.extend(checkpoints.map(|(group, checkpoint)| RuleChange::SaveCheckpoint {
                    rule: name.clone(),
                    group: group.to_owned(),
                    checkpoint,
                }));
            }
        }
        wall
    }

    /// Holds event time until the backlog that waits at the broker is read.
    pub(super) fn hold_event_time(&mut self, now: Time) {
        self.set_hold(Some(EventTimeHold::starting_at(now)));
    }

    pub(super) fn release_event_time(&mut self) {
        self.set_hold(None);
    }

    fn set_hold(&mut self, hold: Option<EventTimeHold>) {
        self.clock.hold = hold;
        for state in self.rules.values_mut() {
            state.windows.hold_event_time(hold.is_some());
        }
    }
}

impl EventTimeHold {
    fn starting_at(now: Time) -> Self {
        let latest_end = now.after(MAX_HOLD);
        Self {
            ends_at: latest_end,
            latest_end,
        }
    }
}
