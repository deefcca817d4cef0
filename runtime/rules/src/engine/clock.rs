//! The time of windows, and how long they are held after a restart.

use std::time::Duration;

use super::{Book, Hold};
use crate::Time;
use crate::changes::RuleChange;

/// The wall clock may stand still or step back by so much without having been set.
const UNSTEADY: Duration = Duration::from_secs(1);
/// After a restart, what waits at the broker is taken to be read when nothing has come for so long since the last message,
/// at most so long after the start.
pub(super) const QUIET: Duration = Duration::from_secs(2);
const SETTLED: Duration = Duration::from_secs(30);

impl Book {
    /// The windows' time: never earlier than before, unless the clock was set back.
    pub(super) fn now(&mut self, wall: Time, changes: &mut Vec<RuleChange>) -> Time {
        let Some(before) = self.clock.filter(|before| *before > wall) else {
            self.clock = Some(wall);
            return wall;
        };
        if before.since(wall) <= UNSTEADY {
            return before;
        }
        tracing::warn!(
            by_s = before.since(wall).as_secs_f64(),
            "the wall clock was set back; windows that would lie in the future end now"
        );
        self.clock = Some(wall);
        self.waiting.set_back(wall);
        self.hold = self.hold.map(|_| Hold::from(wall));
        let names: Vec<String> = self.desks.keys().cloned().collect();
        for name in names {
            let Some(desk) = self.desks.get_mut(&name) else {
                continue;
            };
            let closed = desk.windows.set_back(wall);
            self.close(&name, closed, wall, changes);
            if let Some(desk) = self.desks.get(&name) {
                changes.extend(desk.windows.checkpoints().map(|(group, checkpoint)| {
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

    pub(super) fn set_hold(&mut self, hold: Option<Hold>) {
        self.hold = hold;
        for desk in self.desks.values_mut() {
            desk.windows.hold_event_time(hold.is_some());
        }
    }
}

impl Hold {
    pub(super) fn from(now: Time) -> Self {
        let at_most = now.after(SETTLED);
        Self {
            until: at_most,
            at_most,
        }
    }
}
