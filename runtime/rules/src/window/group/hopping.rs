//! Hopping windows, merged from slices when they close, as Flink's SQL does.
//!
//! A message counts in up to a thousand hopping windows. It is accumulated once, in its slice: the interval around it in
//! which no window begins or ends. A window is a row of slices, so that memory grows with the messages and not with the
//! number of windows that overlap.

use std::time::Duration;

use super::GroupState;
use super::assign::{Arrival, Assignment};
use super::close::WindowEnd;
use crate::window::calendar::Span;
use crate::window::context::WindowContext;
use crate::window::open_window::OpenWindow;
use crate::window::{CloseReason, ClosedWindow};
use crate::{Time, WindowKind};

/// The accumulated messages of an interval that the windows around it share.
#[derive(Debug)]
pub(super) struct Slice {
    counted: OpenWindow,
    /// The tumbling period that it lies in: the last window that contains the slice begins with it.
    period: Span,
    /// The start of the first open window in which its messages count. A message that was late for an earlier window is in
    /// another slice than messages in time.
    from: Time,
}

impl Slice {
    pub(super) fn window(&self) -> &OpenWindow {
        &self.counted
    }

    fn is_in(&self, start: Time) -> bool {
        self.from <= start && start <= self.period.start
    }
}

impl GroupState {
    pub(super) fn assign_to_slice(&mut self, context: &mut WindowContext, arrival: Arrival) -> Assignment {
        let WindowKind::Hopping { length, .. } = context.spec.kind else {
            return Assignment::Uncovered;
        };
        let Arrival { message, time, .. } = arrival;
        let period = context.period(time);
        let end = period.start.after(length);
        if end <= time {
            return Assignment::Uncovered;
        }
        let closed = self.checkpoint.closed_until.is_some_and(|until| end <= until);
        if closed || context.watermark_passed(end, message.arrived) {
            return Assignment::Late;
        }
        // Windows that begin in it or before end before the timestamp.
        let passed = context.period(time.before(length));
        let span = Span {
            start: period.start.max(passed.start.after(length)),
            end: period.end.min(passed.end.after(length)),
        };
        let over = context
            .watermark(message.arrived)
            .max(self.checkpoint.closed_until);
        let from = passed
            .end
            .max(first_open(context, over, length))
            .min(period.start);
        let index = self.slice_for(span, period, from, arrival, context);
        let slice = &mut self.slices[index];
        slice
            .counted
            .count(message, time, context.limits, &mut context.texts);
        slice.counted.add_stored(message.seq, self.last_assigned);
        Assignment::Slice
    }

    /// The slice of a message that counts in the windows from `from` on.
    fn slice_for(
        &mut self,
        span: Span,
        period: Span,
        from: Time,
        arrival: Arrival,
        context: &WindowContext,
    ) -> usize {
        let index = self
            .slices
            .partition_point(|slice| slice.counted.span.start < span.start);
        // A slice that began with earlier windows goes on: those have closed.
        let known = self.slices[index..]
            .iter()
            .take_while(|slice| slice.counted.span.start == span.start)
            .position(|slice| slice.from <= from);
        if let Some(known) = known {
            return index + known;
        }
        let counted = OpenWindow::new(span, arrival.message.arrived, context.limits);
        let slice = Slice {
            counted,
            period,
            from,
        };
        self.slices.insert(index, slice);
        self.first_hop_start = Some(self.first_hop_start.map_or(from, |first| first.min(from)));
        self.stale = true;
        index
    }

    /// The span of the window that is due next.
    pub(super) fn first_hopping_span(&self, context: &WindowContext) -> Option<Span> {
        let WindowKind::Hopping { length, .. } = context.spec.kind else {
            return None;
        };
        let start = self.first_hop_start.filter(|_| !self.slices.is_empty())?;
        let end = start.after(length);
        Some(Span { start, end })
    }

    /// Whether an open window with messages begins with `period`.
    pub(super) fn has_hop_at(&self, period: Span) -> bool {
        self.slices.iter().any(|slice| slice.is_in(period.start))
    }

    /// Whether windows begin after `now`.
    pub(super) fn has_hop_after(&self, now: Time) -> bool {
        self.slices.iter().any(|slice| slice.period.start > now)
    }

    /// Closes the window that begins first.
    pub(super) fn close_hopping(
        &mut self,
        context: &mut WindowContext,
        span: Span,
        ending: impl FnOnce(&OpenWindow) -> WindowEnd,
    ) -> ClosedWindow {
        let window = self.merge_slices(context, span);
        let ending = ending(&window);
        self.finish(context, window, ending)
    }

    /// Closes every window for a reason from outside.
    pub(super) fn close_all_hopping(
        &mut self,
        context: &mut WindowContext,
        now: Time,
        reason: CloseReason,
    ) -> Vec<ClosedWindow> {
        let mut closed = Vec::new();
        while let Some(span) = self.first_hopping_span(context) {
            closed.push(self.close_hopping(context, span, |window| WindowEnd::now(window, now, reason)));
        }
        closed
    }

    /// Merges a window from its slices. Those of its first period are in no later one.
    fn merge_slices(&mut self, context: &mut WindowContext, span: Span) -> OpenWindow {
        let mut window = OpenWindow::new(span, Time(i64::MAX), context.limits);
        let next = context.period(span.start).end;
        for slice in std::mem::take(&mut self.slices) {
            if slice.is_in(span.start) {
                window.accumulate(&slice.counted, context.limits);
            }
            if slice.period.start <= span.start {
                window.take_stored(slice.counted);
            } else {
                let from = slice.from.max(next).min(slice.period.start);
                self.slices.push(Slice { from, ..slice });
            }
        }
        self.first_hop_start = self.slices.iter().map(|slice| slice.from).min();
        window
    }
}

/// The start of the first window that ends after `over`.
fn first_open(context: &mut WindowContext, over: Option<Time>, length: Duration) -> Time {
    over.map_or(Time(i64::MIN), |over| context.period(over.before(length)).end)
}
