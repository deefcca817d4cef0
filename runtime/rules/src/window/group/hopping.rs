//! Hopping windows, put together of slices when they end.
//!
//! A message counts in up to a thousand hopping windows. Each is counted once, in its slice: the stretch of time around it in
//! which no window begins or ends. A window is a row of slices, so that memory grows with the messages and not with the
//! number of windows that overlap.

use std::time::Duration;

use super::assign::{Arrival, Place};
use super::{Ending, Group};
use crate::window::calendar::Span;
use crate::window::context::Frame;
use crate::window::open_window::Window;
use crate::window::{Closed, Closing};
use crate::{Time, WindowKind};

/// What all windows that hold a stretch of time share of it.
#[derive(Debug)]
pub(super) struct Slice {
    counted: Window,
    /// The tumbling period that it lies in: with its start begins the last window that holds it.
    period: Span,
    /// The start of the first window that is open and in which its messages count. A message that was late for a window,
    /// which had nothing to report then, is in another slice than messages in time.
    from: Time,
}

impl Slice {
    fn is_in(&self, start: Time) -> bool {
        self.from <= start && start <= self.period.start
    }
}

impl Group {
    pub(super) fn place_hopping(&mut self, frame: &mut Frame, arrival: Arrival) -> Place {
        let WindowKind::Hopping { length, .. } = frame.spec.kind else {
            return Place::Nowhere;
        };
        let Arrival { message, time, .. } = arrival;
        let period = frame.period(time);
        let end = period.start.after(length);
        if end <= time {
            return Place::Nowhere;
        }
        let closed = self.mark.closed_until.is_some_and(|until| end <= until);
        if closed || frame.is_over(end, message.arrived) {
            return Place::Late;
        }
        // Windows that begin with it or before have ended by then.
        let passed = frame.period(time.before(length));
        let span = Span {
            start: period.start.max(passed.start.after(length)),
            end: period.end.min(passed.end.after(length)),
        };
        let over = frame.over_until(message.arrived).max(self.mark.closed_until);
        let from = passed.end.max(first_open(frame, over, length)).min(period.start);
        let index = self.slice_for(span, period, from, arrival, frame);
        let slice = &mut self.slices[index];
        slice.counted.count(message, time, frame.hold, &mut frame.texts);
        slice.counted.claim(message.seq, self.placed);
        Place::Several
    }

    /// The slice in which a message counts that counts in the windows from `from` on.
    fn slice_for(&mut self, span: Span, period: Span, from: Time, arrival: Arrival, frame: &Frame) -> usize {
        let index = self
            .slices
            .partition_point(|slice| slice.counted.span.start < span.start);
        // What began with earlier windows goes on: those have ended.
        let known = self.slices[index..]
            .iter()
            .take_while(|slice| slice.counted.span.start == span.start)
            .position(|slice| slice.from <= from);
        if let Some(known) = known {
            return index + known;
        }
        let counted = Window::new(span, arrival.message.arrived, frame.hold);
        let slice = Slice {
            counted,
            period,
            from,
        };
        self.slices.insert(index, slice);
        self.hops_from = Some(self.hops_from.map_or(from, |first| first.min(from)));
        self.stale = true;
        index
    }

    /// The window that is due next.
    pub(super) fn first_hopping(&self, frame: &Frame) -> Option<Span> {
        let WindowKind::Hopping { length, .. } = frame.spec.kind else {
            return None;
        };
        let start = self.hops_from.filter(|_| !self.slices.is_empty())?;
        let end = start.after(length);
        Some(Span { start, end })
    }

    /// Whether a window begins with that period that has messages and has not ended.
    pub(super) fn hops_in(&self, period: Span) -> bool {
        self.slices.iter().any(|slice| slice.is_in(period.start))
    }

    /// Whether there are windows that begin after `now`.
    pub(super) fn hops_after(&self, now: Time) -> bool {
        self.slices.iter().any(|slice| slice.period.start > now)
    }

    /// Ends the window that begins first.
    pub(super) fn end_hopping(
        &mut self,
        frame: &mut Frame,
        span: Span,
        ending: impl FnOnce(&Window) -> Ending,
    ) -> Closed {
        let window = self.hopping(frame, span);
        let ending = ending(&window);
        self.finish(frame, window, ending)
    }

    /// Ends every window for a reason that is not its own.
    pub(super) fn end_all_hopping(&mut self, frame: &mut Frame, now: Time, why: Closing) -> Vec<Closed> {
        let mut closed = Vec::new();
        while let Some(span) = self.first_hopping(frame) {
            closed.push(self.end_hopping(frame, span, |window| Ending::now(window, now, why)));
        }
        closed
    }

    /// Puts a window together. The slices of its first period are in no later one.
    fn hopping(&mut self, frame: &mut Frame, span: Span) -> Window {
        let mut window = Window::new(span, Time(i64::MAX), frame.hold);
        let next = frame.period(span.start).end;
        for slice in std::mem::take(&mut self.slices) {
            if slice.is_in(span.start) {
                window.absorb(&slice.counted, frame.hold);
            }
            if slice.period.start <= span.start {
                window.take_runs(slice.counted);
            } else {
                let from = slice.from.max(next).min(slice.period.start);
                self.slices.push(Slice { from, ..slice });
            }
        }
        self.hops_from = self.slices.iter().map(|slice| slice.from).min();
        window
    }
}

/// The start of the first window that ends after `over`.
fn first_open(frame: &mut Frame, over: Option<Time>, length: Duration) -> Time {
    over.map_or(Time(i64::MIN), |over| frame.period(over.before(length)).end)
}
