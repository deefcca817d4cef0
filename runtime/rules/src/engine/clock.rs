//! The time of windows, and how long they are held after a restart.

use std::time::Duration;

use super::{EventTimeHold, RuleEngine};
use crate::Time;
use crate::changes::RuleChange;

/// The wall clock may stand still or step back by so much without having been set.
const MAX_CLOCK_JITTER: Duration = Duration::from_secs(1);
/// After a restart, what waits at the broker is taken to be read when nothing has come for so long since the last message,
/// at most so long after the start.
pub(super) const HOLD_QUIET_PERIOD: Duration = Duration::from_secs(2);
const MAX_HOLD: Duration = Duration::from_secs(30);

impl RuleEngine {
    /// The windows' time: never earlier than before, unless the clock was set back.
    pub(super) fn now(&mut self, wall: Time, changes: &mut Vec<RuleChange>) -> Time {
        let Some(before) = self.clock.filter(|before| *before > wall) else {
            self.clock = Some(wall);
            return wall;
        };
        if before.since(wall) <= MAX_CLOCK_JITTER {
            return before;
        }
        tracing::warn!(
            by_s = before.since(wall).as_secs_f64(),
            "the wall clock was set back; windows that would lie in the future end now"
        );
        self.clock = Some(wall);
        self.pending.set_back(wall);
        self.hold = self.hold.map(|_| EventTimeHold::starting_at(wall));
        let names: Vec<String> = self.rules.keys().cloned().collect();
        for name in names {
            let Some(state) = self.rules.get_mut(&name) else {
                continue;
            };
            let closed = state.windows.set_back(wall);
            self.emit(&name, closed, wall, changes);
            if let Some(state) = self.rules.get(&name) {
                changes.extend(state.windows.checkpoints().map(|(group, checkpoint)| {
                    RuleChange::Checkpoint {
                        rule: name.clone(),
                        group: group.to_owned(),
                        checkpoint,
                    }
                }));
            }
        }
        wall
    }

    pub(super) fn hold_event_time(&mut self, hold: Option<EventTimeHold>) {
        self.hold = hold;
        for state in self.rules.values_mut() {
            state.windows.hold_event_time(hold.is_some());
        }
    }
}

impl EventTimeHold {
    pub(super) fn starting_at(now: Time) -> Self {
        let latest_end = now.after(MAX_HOLD);
        Self {
            ends_at: latest_end,
            latest_end,
        }
    }
}
