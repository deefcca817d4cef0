//! The window assigner of a group.

use super::GroupState;
use crate::window::WindowMessage;
use crate::window::calendar::Span;
use crate::window::context::WindowContext;
use crate::window::open_window::OpenWindow;
use crate::{Time, WindowKind};

/// The window that a message is assigned to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Assignment {
    /// The window of this index.
    Window(usize),
    /// A slice, and with it the hopping windows that share it.
    Slice,
    /// None: its window has closed.
    Late,
    /// None: its timestamp lies in no window, as hopping ones may leave gaps.
    Uncovered,
}

/// A message and its timestamp. `replayed`: it was assigned before a restart, so that its window is known to be open.
#[derive(Debug, Clone, Copy)]
pub(super) struct Arrival<'a> {
    pub(super) message: &'a WindowMessage,
    pub(super) time: Time,
    pub(super) replayed: bool,
}

impl GroupState {
    /// Assigns the message to its window, and accumulates it there.
    pub(super) fn assign(&mut self, context: &mut WindowContext, arrival: Arrival) -> Assignment {
        match context.spec.kind {
            WindowKind::Tumbling { .. } | WindowKind::Schedule { .. } => {
                self.assign_to_period(context, arrival)
            }
            WindowKind::Hopping { .. } => self.assign_to_slice(context, arrival),
            WindowKind::Session { .. } => self.assign_to_session(context, arrival),
            WindowKind::Count { .. } => self.assign_to_count(context, arrival),
        }
    }

    fn assign_to_period(&mut self, context: &mut WindowContext, arrival: Arrival) -> Assignment {
        let Arrival {
            message,
            time,
            replayed,
        } = arrival;
        let period = context.period(time);
        if context.watermark_passed(period.end, message.arrived) {
            return Assignment::Late;
        }
        let index = self
            .windows
            .partition_point(|window| window.span.end < period.end);
        let open = self
            .windows
            .get(index)
            .map(|window| window.span)
            .filter(|span| span.end == period.end);
        let from = open.map_or_else(|| self.remaining_start(period), |span| span.start);
        if time < from && !replayed {
            return Assignment::Late;
        }
        if open.is_none() {
            self.open_at(
                index,
                Span {
                    start: from.min(time),
                    end: period.end,
                },
                arrival,
                context,
            );
        }
        self.count_in(index, arrival, context);
        self.windows[index].add_stored(message.seq, self.last_assigned);
        Assignment::Window(index)
    }

    fn assign_to_session(&mut self, context: &mut WindowContext, arrival: Arrival) -> Assignment {
        let WindowKind::Session { gap } = context.spec.kind else {
            return Assignment::Uncovered;
        };
        let Arrival {
            message,
            time,
            replayed,
        } = arrival;
        let end = time.after(gap);
        // A session's end is a gap after its newest message, so this is the same distance on both sides. Messages of the
        // same moment are together even where the gap is nothing.
        let near = |span: Span, newest: Time| (time < span.end && span.start < end) || time == newest;
        let first = self
            .windows
            .iter()
            .position(|window| near(window.span, window.newest));
        let Some(index) = first else {
            let passed = context.watermark_passed(end, message.arrived);
            let closed = self.checkpoint.closed_until.is_some_and(|until| time < until);
            if !replayed && (passed || closed) {
                return Assignment::Late;
            }
            let index = self.windows.partition_point(|window| window.span.start < time);
            self.open_at(index, Span { start: time, end }, arrival, context);
            self.count_in(index, arrival, context);
            self.windows[index].add_stored(message.seq, self.last_assigned);
            return Assignment::Window(index);
        };
        if self
            .windows
            .get(index + 1)
            .is_some_and(|window| near(window.span, window.newest))
        {
            let next = self.windows.remove(index + 1);
            self.windows[index].merge(next, context.limits);
        }
        let span = &mut self.windows[index].span;
        span.start = span.start.min(time);
        span.end = span.end.max(end);
        self.count_in(index, arrival, context);
        self.windows[index].add_stored(message.seq, self.last_assigned);
        Assignment::Window(index)
    }

    fn assign_to_count(&mut self, context: &mut WindowContext, arrival: Arrival) -> Assignment {
        let time = arrival.time;
        if self.windows.is_empty() {
            self.open_at(
                0,
                Span {
                    start: time,
                    end: time,
                },
                arrival,
                context,
            );
        }
        let span = &mut self.windows[0].span;
        span.start = span.start.min(time);
        span.end = span.end.max(time);
        self.count_in(0, arrival, context);
        self.windows[0].add_stored(arrival.message.seq, self.last_assigned);
        Assignment::Window(0)
    }

    fn open_at(&mut self, index: usize, span: Span, arrival: Arrival, context: &mut WindowContext) {
        self.windows.insert(
            index,
            OpenWindow::new(span, arrival.message.arrived, context.limits),
        );
        self.stale = true;
    }

    fn count_in(&mut self, index: usize, arrival: Arrival, context: &mut WindowContext) {
        self.windows[index].count(arrival.message, arrival.time, context.limits, &mut context.texts);
    }
}
