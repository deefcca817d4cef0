//! The events that are not published yet.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::time::Duration;

use crate::changes::PendingEvent;
use crate::{EventError, Time};
use phi_edge_job::ErrorCode;

/// The capacity of the queue of events. A model that can't keep up must cost neither the memory nor the disk.
#[derive(Debug, Clone, Copy)]
pub struct QueueCapacity {
    /// The most events that need a summary.
    pub events: usize,
    /// The most bytes of their messages; a single event may be larger.
    pub bytes: u64,
    /// The most events without a summary that wait for an earlier one of their group.
    pub followers: usize,
}

impl QueueCapacity {
    /// The capacity of a node.
    pub const DEFAULT: Self = Self {
        events: 1000,
        bytes: 32 << 20,
        followers: 1000,
    };
    /// No limits, for callers that take each event at once.
    pub const UNBOUNDED: Self = Self {
        events: usize::MAX,
        bytes: u64::MAX,
        followers: usize::MAX,
    };
}

const QUEUE_FULL: &str = "more events wait for words than there is room for";

/// The error of an event whose messages exceed the queue's capacity.
pub(super) fn queue_full() -> EventError {
    EventError {
        code: ErrorCode::Busy,
        message: QUEUE_FULL.to_owned(),
    }
}

/// Events that are not published yet, in the order in which their windows closed.
pub(super) struct PendingEvents {
    queue: VecDeque<QueuedEvent>,
    /// Events that were taken and are not completed, by id.
    in_progress: BTreeMap<String, PendingEvent>,
    /// The number of queued events that need a summary.
    needs_summary: usize,
    /// Bytes of their messages.
    bytes: u64,
    capacity: QueueCapacity,
}

struct QueuedEvent {
    pending: PendingEvent,
    /// Whether the event needs a summary; else it is published with facts only.
    needs_summary: bool,
    /// Whether it may be published before earlier events of its group.
    skips_order: bool,
}

impl PendingEvents {
    pub(super) fn new(capacity: QueueCapacity) -> Self {
        Self {
            queue: VecDeque::new(),
            in_progress: BTreeMap::new(),
            needs_summary: 0,
            bytes: 0,
            capacity,
        }
    }

    /// The most bytes of messages that the model is shown.
    pub(super) fn capacity_bytes(&self) -> u64 {
        self.capacity.bytes
    }

    /// The number of events that are not published yet.
    pub(super) fn len(&self) -> usize {
        self.queue.len() + self.in_progress.len()
    }

    /// Adds an event. Beyond the capacity, the oldest lose their summary.
    pub(super) fn push(&mut self, pending: PendingEvent, needs_summary: bool) {
        if needs_summary {
            self.needs_summary += 1;
            self.bytes += pending.cost();
        }
        self.queue.push_back(QueuedEvent {
            pending,
            needs_summary,
            skips_order: false,
        });
        while self.needs_summary > 1
            && (self.needs_summary > self.capacity.events || self.bytes > self.capacity.bytes)
        {
            let Some(oldest) = self.queue.iter().position(|queued| queued.needs_summary) else {
                return;
            };
            self.drop_summary(oldest, QUEUE_FULL);
        }
        self.bound_followers();
    }

    /// Where more events wait for earlier ones of their group than the capacity allows, the oldest may skip the order.
    fn bound_followers(&mut self) {
        let behind = |queued: &&mut QueuedEvent| !queued.needs_summary && !queued.skips_order;
        let many = self.queue.len().saturating_sub(self.needs_summary);
        if many <= self.capacity.followers {
            return;
        }
        let over = self
            .queue
            .iter_mut()
            .filter(behind)
            .count()
            .saturating_sub(self.capacity.followers);
        for queued in self.queue.iter_mut().filter(behind).take(over) {
            queued.skips_order = true;
        }
    }

    /// Events whose deadline has passed lose their summary. `deadline` returns that of a rule, `None` if it is not
    /// configured.
    pub(super) fn expire(&mut self, now: Time, deadline: impl Fn(&str) -> Option<Duration>) {
        for index in 0..self.queue.len() {
            let expired = self.queue.get(index).is_some_and(|queued| {
                let pending = &queued.pending;
                let left = deadline(&pending.event.rule).map(|deadline| pending.left(now, deadline));
                queued.needs_summary && left.is_some_and(|left| left.is_zero())
            });
            if expired {
                self.drop_summary(index, "the model was busy until the rule's `deadline` had passed");
            }
        }
    }

    /// Takes the oldest event that is published with facts only.
    pub(super) fn take_facts_only(&mut self) -> Option<PendingEvent> {
        self.take(false)
    }

    /// Takes the oldest event that needs a summary.
    pub(super) fn take_pending_summary(&mut self) -> Option<PendingEvent> {
        self.take(true)
    }

    /// Removes an event that was taken.
    pub(super) fn complete(&mut self, event_id: &str) {
        self.in_progress.remove(event_id);
    }

    /// Cuts the times of events to a clock that was set back.
    pub(super) fn set_back(&mut self, now: Time) {
        for queued in &mut self.queue {
            queued.pending.since = queued.pending.since.min(now);
        }
    }

    /// All of them, in order.
    pub(super) fn all(&self) -> impl Iterator<Item = &PendingEvent> {
        let waiting = self.queue.iter().map(|queued| &queued.pending);
        self.in_progress.values().chain(waiting)
    }

    /// Takes the oldest event of a kind. Events of one group are taken in the order of their windows, and one only
    /// after the one before it was completed: of retained events the broker keeps the last.
    fn take(&mut self, needs_summary: bool) -> Option<PendingEvent> {
        fn group(pending: &PendingEvent) -> (&str, &str) {
            (&pending.event.rule, &pending.event.group)
        }
        let mut before: HashSet<(&str, &str)> = self.in_progress.values().map(group).collect();
        let next = self.queue.iter().position(|queued| {
            let first = before.insert(group(&queued.pending));
            (first || queued.skips_order) && queued.needs_summary == needs_summary
        })?;
        let QueuedEvent {
            pending,
            needs_summary,
            ..
        } = self.queue.remove(next)?;
        if needs_summary {
            self.needs_summary -= 1;
            self.bytes -= pending.cost();
        }
        self.in_progress
            .insert(pending.event.event_id.clone(), pending.clone());
        Some(pending)
    }

    fn drop_summary(&mut self, index: usize, reason: &str) {
        let Some(queued) = self.queue.get_mut(index) else {
            return;
        };
        self.needs_summary -= 1;
        self.bytes -= queued.pending.cost();
        queued.needs_summary = false;
        queued.pending.messages = Vec::new();
        queued.pending.pictures = Vec::new();
        let event = &mut queued.pending.event;
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
