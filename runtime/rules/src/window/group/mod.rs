//! The window operator's state for one group.

mod assign;
mod close;
mod empty;
mod hopping;
mod trigger;

use std::sync::Arc;

use self::assign::{Arrival, Assignment};
use self::close::WindowEnd;
use self::hopping::Slice;
use super::{Checkpoint, CloseReason, ClosedWindow, OVERFLOW_GROUP, WindowMessage};
use crate::Time;
use crate::window::calendar::Span;
use crate::window::context::WindowContext;
use crate::window::open_window::OpenWindow;

/// The window operator's state for one group: its open windows and its checkpoint.
#[derive(Debug)]
pub(super) struct GroupState {
    pub(super) name: Arc<str>,
    /// Open windows but hopping ones, ascending by start; by end, too, but for sessions that closed early.
    pub(super) windows: Vec<OpenWindow>,
    /// The slices of open hopping windows, ascending by start.
    slices: Vec<Slice>,
    /// The start of the first open hopping window.
    pub(super) first_hop_start: Option<Time>,
    /// The number of its windows and slices as [`super::WindowOperator`] last counted them.
    pub(super) counted: usize,
    /// Its checkpoint as of now.
    pub(super) checkpoint: Checkpoint,
    /// Stored messages up to this one were assigned before a restart.
    assigned_until: Option<u64>,
    /// The newest message that was assigned.
    pub(super) last_assigned: Option<u64>,
    /// The next empty window that is to be reported.
    empty_window: Option<Span>,
    /// Whether `empty_window` is out of date.
    pub(super) stale: bool,
    /// Its key in the queue of due groups.
    pub(super) queued: Option<Time>,
    /// Its key in the queue of groups that may be evicted.
    pub(super) evictable: Option<Time>,
}

impl GroupState {
    pub(super) fn new(name: Arc<str>, checkpoint: Checkpoint) -> Self {
        Self {
            name,
            windows: Vec::new(),
            slices: Vec::new(),
            first_hop_start: None,
            counted: 0,
            assigned_until: checkpoint.seq,
            checkpoint,
            last_assigned: None,
            empty_window: None,
            stale: true,
            queued: None,
            evictable: None,
        }
    }

    /// Its open windows, and the slices of hopping ones.
    pub(super) fn open_windows(&self) -> impl Iterator<Item = &OpenWindow> {
        self.windows.iter().chain(self.slices.iter().map(Slice::window))
    }

    /// Whether the message was assigned before a restart.
    pub(super) fn has_assigned(&self, seq: u64) -> bool {
        self.assigned_until.is_some_and(|until| seq <= until)
    }

    /// Assigns a message to its window. Returns whether there is one, and the window if the message closes it.
    pub(super) fn ingest(
        &mut self,
        context: &mut WindowContext,
        o: &WindowMessage,
    ) -> (bool, Option<ClosedWindow>) {
        let replayed = self.has_assigned(o.seq);
        let time = context.timestamp_of(o.event_time, o.arrived);
        if !replayed {
            self.checkpoint.seq = self.checkpoint.seq.max(Some(o.seq));
            self.record_arrival(o.arrived);
        }
        let assignment = self.assign(
            context,
            Arrival {
                message: o,
                time,
                replayed,
            },
        );
        let assigned = !matches!(assignment, Assignment::Late | Assignment::Uncovered);
        if assigned {
            self.last_assigned = Some(o.seq);
        }
        if assignment == Assignment::Late {
            self.checkpoint.late += 1;
        }
        if context.reports_empty() && self.checkpoint.empty_from.is_none() {
            let known_from = if assigned { time } else { o.arrived };
            self.report_empty_from(context.period(known_from).start);
        }
        let ended = match assignment {
            Assignment::Window(index) if !replayed => self.close_on_message(context, index, o, time),
            _ => None,
        };
        (assigned, ended)
    }

    /// Whether the message would close its window by `early`.
    pub(super) fn would_end_early(&self, context: &WindowContext, o: &WindowMessage) -> bool {
        o.early && !context.is_hopping() && self.has_cooled_down(o.arrived)
    }

    /// Records a message that counts nowhere.
    pub(super) fn record_dropped(&mut self, context: &mut WindowContext, o: &WindowMessage) {
        self.record_arrival(o.arrived);
        if context.reports_empty() && self.checkpoint.empty_from.is_none() {
            self.report_empty_from(context.period(o.arrived).start);
        }
    }

    fn record_arrival(&mut self, arrived: Time) {
        self.checkpoint.last_seen = Some(arrived);
        self.checkpoint.absent = false;
    }

    fn has_cooled_down(&self, at: Time) -> bool {
        self.checkpoint.cool_until.is_none_or(|until| until <= at)
    }

    /// Closes every window for a reason from outside.
    pub(super) fn close_all(
        &mut self,
        context: &mut WindowContext,
        now: Time,
        reason: CloseReason,
    ) -> Vec<ClosedWindow> {
        let mut closed = self.close_all_hopping(context, now, reason);
        while !self.windows.is_empty() {
            closed.push(self.close_at(context, 0, now, reason));
        }
        closed
    }

    fn close_at(
        &mut self,
        context: &mut WindowContext,
        index: usize,
        now: Time,
        reason: CloseReason,
    ) -> ClosedWindow {
        let ending = WindowEnd::now(&self.windows[index], now, reason);
        self.close(context, index, ending)
    }

    /// Cuts the checkpoint to `now`, and closes windows that begin after it. The clock had been at `latest`.
    pub(super) fn set_back(
        &mut self,
        context: &mut WindowContext,
        latest: Time,
        now: Time,
    ) -> Vec<ClosedWindow> {
        self.prune_remainders(context, latest);
        let checkpoint = &mut self.checkpoint;
        let reopens = checkpoint.closed_until.is_some_and(|until| until > now);
        for cut in [
            &mut checkpoint.closed_until,
            &mut checkpoint.cool_until,
            &mut checkpoint.last_seen,
            &mut checkpoint.empty_from,
        ] {
            *cut = cut.map(|time| time.min(now));
        }
        checkpoint
            .remainders
            .retain(|remainder| context.period(remainder.from).start <= now);
        for remainder in &mut checkpoint.remainders {
            remainder.from = remainder.from.min(now);
        }
        self.stale = true;
        let after = self.windows.partition_point(|window| window.span.start <= now);
        // Hopping windows share messages: an open one may have some that must not count again in one that is opened again.
        if context.is_hopping() && (reopens || self.has_hop_after(now)) {
            return self.close_all(context, now, CloseReason::Clock);
        }
        (after..self.windows.len())
            .map(|_| self.close_at(context, after, now, CloseReason::Clock))
            .collect()
    }

    /// Whether an eviction loses nothing but the checkpoint.
    pub(super) fn is_evictable(&self, context: &WindowContext) -> bool {
        let waits = context.spec.absence.is_some() && !self.checkpoint.absent;
        self.open() == 0 && !waits && !context.reports_empty() && &*self.name != OVERFLOW_GROUP
    }

    /// The number of open windows and slices.
    pub(super) fn open(&self) -> usize {
        self.windows.len() + self.slices.len()
    }

    /// The start of the part of a period that has not closed.
    pub(super) fn remaining_start(&self, period: Span) -> Time {
        let remainder = self
            .checkpoint
            .remainders
            .iter()
            .find(|remainder| remainder.end == period.end)
            .map(|remainder| remainder.from);
        [remainder, self.checkpoint.closed_until]
            .into_iter()
            .flatten()
            .fold(period.start, Time::max)
    }
}
