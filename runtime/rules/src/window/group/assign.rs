//! Which window of its group a message counts in.

use super::Group;
use crate::window::Observation;
use crate::window::calendar::Span;
use crate::window::context::Frame;
use crate::window::open_window::Window;
use crate::{Time, WindowKind};

/// Where a message went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// Into the window of this index.
    One(usize),
    /// Into windows that overlap.
    Several,
    /// Its window has closed.
    Late,
    /// No window covers its time: hopping ones may leave gaps.
    Nowhere,
}

/// A message and its time. `again` says that it was placed before a restart, so that its window is known to be open.
#[derive(Debug, Clone, Copy)]
pub(super) struct Arrival<'a> {
    pub(super) message: &'a Observation,
    pub(super) time: Time,
    pub(super) again: bool,
}

impl Group {
    /// Counts the message where it belongs.
    pub(super) fn place(&mut self, frame: &mut Frame, arrival: Arrival) -> Place {
        match frame.spec.kind {
            WindowKind::Tumbling { .. } | WindowKind::Schedule { .. } => self.place_in_period(frame, arrival),
            WindowKind::Hopping { .. } => self.place_hopping(frame, arrival),
            WindowKind::Session { .. } => self.place_in_session(frame, arrival),
            WindowKind::Count { .. } => self.place_in_count(frame, arrival),
        }
    }

    fn place_in_period(&mut self, frame: &mut Frame, arrival: Arrival) -> Place {
        let Arrival { message, time, again } = arrival;
        let period = frame.period(time);
        if frame.is_over(period.end, message.arrived) {
            return Place::Late;
        }
        let index = self
            .windows
            .partition_point(|window| window.span.end < period.end);
        let open = self
            .windows
            .get(index)
            .map(|window| window.span)
            .filter(|span| span.end == period.end);
        let from = open.map_or_else(|| self.floor(period), |span| span.start);
        if time < from && !again {
            return Place::Late;
        }
        if open.is_none() {
            self.open_at(
                index,
                Span {
                    start: from.min(time),
                    end: period.end,
                },
                arrival,
                frame,
            );
        }
        self.count_in(index, arrival, frame);
        self.windows[index].claim(message.seq, self.placed);
        Place::One(index)
    }

    fn place_in_session(&mut self, frame: &mut Frame, arrival: Arrival) -> Place {
        let WindowKind::Session { gap } = frame.spec.kind else {
            return Place::Nowhere;
        };
        let Arrival { message, time, again } = arrival;
        let end = time.after(gap);
        // A session's end is a gap after its newest message, so this is the same distance on both sides. Messages of the
        // same moment are together even where the gap is nothing.
        let near = |span: Span, newest: Time| (time < span.end && span.start < end) || time == newest;
        let first = self
            .windows
            .iter()
            .position(|window| near(window.span, window.newest));
        let Some(index) = first else {
            let passed = frame.is_over(end, message.arrived);
            let closed = self.mark.closed_until.is_some_and(|until| time < until);
            if !again && (passed || closed) {
                return Place::Late;
            }
            let index = self.windows.partition_point(|window| window.span.start < time);
            self.open_at(index, Span { start: time, end }, arrival, frame);
            self.count_in(index, arrival, frame);
            self.windows[index].claim(message.seq, self.placed);
            return Place::One(index);
        };
        if self
            .windows
            .get(index + 1)
            .is_some_and(|window| near(window.span, window.newest))
        {
            let next = self.windows.remove(index + 1);
            self.windows[index].merge(next, frame.hold);
        }
        let span = &mut self.windows[index].span;
        span.start = span.start.min(time);
        span.end = span.end.max(end);
        self.count_in(index, arrival, frame);
        self.windows[index].claim(message.seq, self.placed);
        Place::One(index)
    }

    fn place_in_count(&mut self, frame: &mut Frame, arrival: Arrival) -> Place {
        let time = arrival.time;
        if self.windows.is_empty() {
            self.open_at(
                0,
                Span {
                    start: time,
                    end: time,
                },
                arrival,
                frame,
            );
        }
        let span = &mut self.windows[0].span;
        span.start = span.start.min(time);
        span.end = span.end.max(time);
        self.count_in(0, arrival, frame);
        self.windows[0].claim(arrival.message.seq, self.placed);
        Place::One(0)
    }

    fn open_at(&mut self, index: usize, span: Span, arrival: Arrival, frame: &mut Frame) {
        self.windows
            .insert(index, Window::new(span, arrival.message.arrived, frame.hold));
        self.stale = true;
    }

    fn count_in(&mut self, index: usize, arrival: Arrival, frame: &mut Frame) {
        self.windows[index].count(arrival.message, arrival.time, frame.hold, &mut frame.texts);
    }
}
