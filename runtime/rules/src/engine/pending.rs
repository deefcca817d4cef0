//! Events that are not published yet: those that wait for their words, and those that get them.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::time::Duration;

use crate::changes::PendingEvent;
use crate::{EventError, Time};
use phi_edge_job::ErrorCode;

/// How much may wait for words. A model that can't keep up must cost neither the memory nor the disk.
#[derive(Debug, Clone, Copy)]
pub struct Room {
    /// The most events.
    pub events: usize,
    /// The most bytes of what the model is to be shown; a single event may be larger.
    pub bytes: u64,
    /// The most events that wait, without words of their own, for one of their group that gets its words.
    pub behind: usize,
}

impl Room {
    /// What a node affords.
    pub const USUAL: Self = Self {
        events: 1000,
        bytes: 32 << 20,
        behind: 1000,
    };
    /// For who takes each event at once.
    pub const ENDLESS: Self = Self {
        events: usize::MAX,
        bytes: u64::MAX,
        behind: usize::MAX,
    };
}

const TOO_MANY: &str = "more events wait for words than there is room for";

/// Why an event is published without words that there is no room to keep messages for.
pub(super) fn too_many() -> EventError {
    EventError {
        code: ErrorCode::Busy,
        message: TOO_MANY.to_owned(),
    }
}

/// Events in the order in which their windows ended.
pub(super) struct Waiting {
    queue: VecDeque<Waiter>,
    /// Events that get their words or are published now, by id.
    at_work: BTreeMap<String, PendingEvent>,
    /// How many wait for words, and what those cost.
    wordy: usize,
    bytes: u64,
    room: Room,
}

struct Waiter {
    pending: PendingEvent,
    /// Whether the model is to be asked; else the facts go as they are.
    wordy: bool,
    /// It need not wait for those of its group that ended before.
    at_once: bool,
}

impl Waiting {
    pub(super) fn new(room: Room) -> Self {
        Self {
            queue: VecDeque::new(),
            at_work: BTreeMap::new(),
            wordy: 0,
            bytes: 0,
            room,
        }
    }

    /// The most bytes of what the model is to be shown.
    pub(super) fn room_bytes(&self) -> u64 {
        self.room.bytes
    }

    /// How many are not published yet.
    pub(super) fn len(&self) -> usize {
        self.queue.len() + self.at_work.len()
    }

    /// Takes an event in. Where that is more than there is room for, the oldest go without words.
    pub(super) fn push(&mut self, pending: PendingEvent, wordy: bool) {
        if wordy {
            self.wordy += 1;
            self.bytes += pending.cost();
        }
        self.queue.push_back(Waiter {
            pending,
            wordy,
            at_once: false,
        });
        while self.wordy > 1 && (self.wordy > self.room.events || self.bytes > self.room.bytes) {
            let Some(oldest) = self.queue.iter().position(|waiter| waiter.wordy) else {
                return;
            };
            self.give_up(oldest, TOO_MANY);
        }
        self.let_go();
    }

    /// Where more wait behind others of their group than there is room for, the oldest go out of order.
    fn let_go(&mut self) {
        let behind = |waiter: &&mut Waiter| !waiter.wordy && !waiter.at_once;
        let many = self.queue.len().saturating_sub(self.wordy);
        if many <= self.room.behind {
            return;
        }
        let over = self
            .queue
            .iter_mut()
            .filter(behind)
            .count()
            .saturating_sub(self.room.behind);
        for waiter in self.queue.iter_mut().filter(behind).take(over) {
            waiter.at_once = true;
        }
    }

    /// Those of whose deadline nothing is left go without words. `deadline` is that of a rule, none of one that is gone.
    pub(super) fn expire(&mut self, now: Time, deadline: impl Fn(&str) -> Option<Duration>) {
        for index in 0..self.queue.len() {
            let expired = self.queue.get(index).is_some_and(|waiter| {
                let pending = &waiter.pending;
                let left = deadline(&pending.event.rule).map(|deadline| pending.left(now, deadline));
                waiter.wordy && left.is_some_and(|left| left.is_zero())
            });
            if expired {
                self.give_up(index, "the model was busy until the rule's `deadline` had passed");
            }
        }
    }

    /// The oldest event to be published as it is.
    pub(super) fn take_facts(&mut self) -> Option<PendingEvent> {
        self.take(false)
    }

    /// The oldest event to be given its words.
    pub(super) fn take_wordy(&mut self) -> Option<PendingEvent> {
        self.take(true)
    }

    /// The event is among the messages to be published.
    pub(super) fn posted(&mut self, event_id: &str) {
        self.at_work.remove(event_id);
    }

    /// The clock was set back: no event has waited since a time to come.
    pub(super) fn set_back(&mut self, now: Time) {
        for waiter in &mut self.queue {
            waiter.pending.since = waiter.pending.since.min(now);
        }
    }

    /// All of them, in order.
    pub(super) fn all(&self) -> impl Iterator<Item = &PendingEvent> {
        let queued = self.queue.iter().map(|waiter| &waiter.pending);
        self.at_work.values().chain(queued)
    }

    /// Events of one group come in the order of their windows, or a broker that retains them would keep the older one:
    /// while one is at work, the next waits.
    fn take(&mut self, wordy: bool) -> Option<PendingEvent> {
        fn group(pending: &PendingEvent) -> (&str, &str) {
            (&pending.event.rule, &pending.event.group)
        }
        let mut before: HashSet<(&str, &str)> = self.at_work.values().map(group).collect();
        let next = self.queue.iter().position(|waiter| {
            let first = before.insert(group(&waiter.pending));
            (first || waiter.at_once) && waiter.wordy == wordy
        })?;
        let Waiter { pending, wordy, .. } = self.queue.remove(next)?;
        if wordy {
            self.wordy -= 1;
            self.bytes -= pending.cost();
        }
        self.at_work
            .insert(pending.event.event_id.clone(), pending.clone());
        Some(pending)
    }

    fn give_up(&mut self, index: usize, reason: &str) {
        let Some(waiter) = self.queue.get_mut(index) else {
            return;
        };
        self.wordy -= 1;
        self.bytes -= waiter.pending.cost();
        waiter.wordy = false;
        waiter.pending.messages = Vec::new();
        let event = &mut waiter.pending.event;
        tracing::warn!(
            rule = event.rule,
            event.id = event.event_id,
            code = ErrorCode::Busy.as_str(),
            error = reason,
            "an event has facts only"
        );
        event.error = Some(EventError {
            code: ErrorCode::Busy,
            message: reason.to_owned(),
        });
    }
}
