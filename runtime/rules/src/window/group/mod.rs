//! The windows of one group, and how they end.

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

/// A group.
#[derive(Debug)]
pub(super) struct GroupState {
    pub(super) name: Arc<str>,
    /// Ascending by start; by end, too, but for sessions that ended early.
    pub(super) windows: Vec<OpenWindow>,
    /// What hopping windows are put together of, which are not among `windows`; ascending by start.
    slices: Vec<Slice>,
    /// Where the first hopping window begins that is open.
    pub(super) first_hop: Option<Time>,
    /// How many windows and slices [`super::WindowOperator`] has counted of it.
    pub(super) counted: usize,
    /// What is true of it now.
    pub(super) checkpoint: Checkpoint,
    /// Stored messages up to this one were placed before a restart.
    assigned_until: Option<u64>,
    /// The newest message that was placed.
    pub(super) last_assigned: Option<u64>,
    /// The next window without messages that is to be reported.
    empty_window: Option<Span>,
    /// Whether `vacant` must be looked for anew.
    pub(super) stale: bool,
    /// Where it stands in the queue of what is due.
    pub(super) queued: Option<Time>,
    /// Where it stands in the queue of what may be forgotten.
    pub(super) evictable: Option<Time>,
}

impl GroupState {
    pub(super) fn new(name: Arc<str>, checkpoint: Checkpoint) -> Self {
        Self {
            name,
            windows: Vec::new(),
            slices: Vec::new(),
            first_hop: None,
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

    /// Whether the message was placed before a restart.
    pub(super) fn has_assigned(&self, seq: u64) -> bool {
        self.assigned_until.is_some_and(|until| seq <= until)
    }

    /// Counts a message, and ends the window that it ends. Says whether it counts in one.
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

    /// Whether the message would end the window that it counts in, by `early`.
    pub(super) fn would_end_early(&self, context: &WindowContext, o: &WindowMessage) -> bool {
        o.early && !context.is_hopping() && self.has_cooled_down(o.arrived)
    }

    /// A message came that counts nowhere.
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

    /// Ends every window for a reason that is not its own.
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

    /// Forgets what is after `now`, and ends windows that begin after it. The clock had been at `latest`.
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
        // WindowOperator share messages: an open one may hold some that must not count again in one that comes again.
        if context.is_hopping() && (reopens || self.has_hop_after(now)) {
            return self.close_all(context, now, CloseReason::Clock);
        }
        (after..self.windows.len())
            .map(|_| self.close_at(context, after, now, CloseReason::Clock))
            .collect()
    }

    /// Whether nothing is lost but its checkpoint if it is forgotten.
    pub(super) fn is_evictable(&self, context: &WindowContext) -> bool {
        let waits = context.spec.absence.is_some() && !self.checkpoint.absent;
        self.open() == 0 && !waits && !context.reports_empty() && &*self.name != OVERFLOW_GROUP
    }

    /// WindowOperator and slices that are open.
    pub(super) fn open(&self) -> usize {
        self.windows.len() + self.slices.len()
    }

    /// Where what is still open of a period begins.
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
