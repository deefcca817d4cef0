//! The windows of one group, and how they end.

mod assign;
mod empty;
mod hopping;

use std::sync::Arc;
use std::time::Duration;

use self::assign::{Arrival, Place};
use self::hopping::Slice;
use super::{Closed, Closing, Mark, OTHER, Observation, Split};
use crate::facts::Accumulator;
use crate::window::calendar::Span;
use crate::window::context::Frame;
use crate::window::open_window::Window;
use crate::{Time, WindowKind};

/// A window that ends with a message ends just after it.
const JUST: Duration = Duration::from_millis(1);

/// The most periods of a group that go on after a first part of them has closed. Messages of a field's time may be of any
/// period for as long as the rule waits for late ones.
const SPLITS: usize = 1000;

/// A group.
#[derive(Debug)]
pub(super) struct Group {
    pub(super) name: Arc<str>,
    /// Ascending by start; by end, too, but for sessions that ended early.
    pub(super) windows: Vec<Window>,
    /// What hopping windows are put together of, which are not among `windows`; ascending by start.
    slices: Vec<Slice>,
    /// Where the first hopping window begins that is open.
    pub(super) hops_from: Option<Time>,
    /// How many windows and slices [`super::Windows`] has counted of it.
    pub(super) counted: usize,
    /// What is true of it now.
    pub(super) mark: Mark,
    /// Stored messages up to this one were placed before a restart.
    placed_until: Option<u64>,
    /// The newest message that was placed.
    pub(super) placed: Option<u64>,
    /// The next window without messages that is to be reported.
    vacant: Option<Span>,
    /// Whether `vacant` must be looked for anew.
    pub(super) stale: bool,
    /// Where it stands in the queue of what is due.
    pub(super) queued: Option<Time>,
    /// Where it stands in the queue of what may be forgotten.
    pub(super) idle: Option<Time>,
}

/// How a window ends.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ending {
    why: Closing,
    end: Time,
    /// The moment by the clock.
    at: Time,
    /// Where the rest of its period begins; none if what came before is to be forgotten.
    rest: Option<Time>,
}

impl Ending {
    /// For a reason that is not the window's own.
    pub(super) fn now(window: &Window, now: Time, why: Closing) -> Self {
        Self {
            why,
            end: now.max(window.newest).min(window.span.end),
            at: now,
            rest: (why != Closing::Clock).then(|| window.newest.min(now).max(window.span.start)),
        }
    }
}

impl Group {
    pub(super) fn new(name: Arc<str>, mark: Mark) -> Self {
        Self {
            name,
            windows: Vec::new(),
            slices: Vec::new(),
            hops_from: None,
            counted: 0,
            placed_until: mark.seq,
            mark,
            placed: None,
            vacant: None,
            stale: true,
            queued: None,
            idle: None,
        }
    }

    /// Whether the message was placed before a restart.
    pub(super) fn has_placed(&self, seq: u64) -> bool {
        self.placed_until.is_some_and(|until| seq <= until)
    }

    /// Counts a message, and ends the window that it ends. Says whether it counts in one.
    pub(super) fn observe(&mut self, frame: &mut Frame, o: &Observation) -> (bool, Option<Closed>) {
        let again = self.has_placed(o.seq);
        let time = frame.time_of(o.stamp, o.arrived);
        if !again {
            self.mark.seq = self.mark.seq.max(Some(o.seq));
            self.see(o.arrived);
        }
        let place = self.place(
            frame,
            Arrival {
                message: o,
                time,
                again,
            },
        );
        let placed = !matches!(place, Place::Late | Place::Nowhere);
        if placed {
            self.placed = Some(o.seq);
        }
        if place == Place::Late {
            self.mark.late += 1;
        }
        if frame.reports_empty() && self.mark.empty_from.is_none() {
            let known_from = if placed { time } else { o.arrived };
            self.expect_from(frame.period(known_from).start);
        }
        let ended = match place {
            Place::One(index) if !again => self.end_with(frame, index, o, time),
            _ => None,
        };
        (placed, ended)
    }

    /// Whether the message would end the window that it counts in, by `early`.
    pub(super) fn would_end_early(&self, frame: &Frame, o: &Observation) -> bool {
        o.early && !frame.is_hopping() && self.is_calm(o.arrived)
    }

    /// A message came that counts nowhere.
    pub(super) fn miss(&mut self, frame: &mut Frame, o: &Observation) {
        self.see(o.arrived);
        if frame.reports_empty() && self.mark.empty_from.is_none() {
            self.expect_from(frame.period(o.arrived).start);
        }
    }

    fn see(&mut self, arrived: Time) {
        self.mark.last_seen = Some(arrived);
        self.mark.absent = false;
    }

    fn is_calm(&self, at: Time) -> bool {
        self.mark.cool_until.is_none_or(|until| until <= at)
    }

    fn end_with(&mut self, frame: &mut Frame, index: usize, o: &Observation, time: Time) -> Option<Closed> {
        let window = &self.windows[index];
        let spec = &frame.spec;
        let calm = self.is_calm(o.arrived);
        let too_many = spec.early_rate.is_some_and(|(most, within)| {
            let back = usize::try_from(most).unwrap_or(usize::MAX);
            window
                .arrival_before(back)
                .is_some_and(|before| o.arrived < before.after(within))
        });
        let full = spec.max_messages.is_some_and(|most| window.messages >= most)
            || spec.max_bytes.is_some_and(|most| window.bytes >= most);
        let why = if calm && (o.early || too_many) {
            Closing::Early
        } else if full {
            Closing::Full
        } else if matches!(spec.kind, WindowKind::Count { messages } if window.messages >= messages) {
            Closing::Due
        } else {
            return None;
        };
        let end = time.after(JUST).min(window.span.end);
        Some(self.end(
            frame,
            index,
            Ending {
                why,
                end,
                at: o.arrived,
                rest: Some(time),
            },
        ))
    }

    /// When [`Self::end_next`] has something to do.
    pub(super) fn due(&mut self, frame: &mut Frame) -> Option<Time> {
        if self.stale {
            self.stale = false;
            self.vacant = self.find_vacant(frame);
        }
        let window = match frame.spec.kind {
            WindowKind::Session { .. } | WindowKind::Count { .. } => self
                .windows
                .iter()
                .filter_map(|window| window_due(frame, window))
                .map(|(due, _)| due)
                .min(),
            WindowKind::Hopping { .. } => self.first_hopping(frame).map(|span| frame.due(span.end)),
            _ => self.windows.first().map(|window| frame.due(window.span.end)),
        };
        let vacant = self.vacant.map(|span| frame.due(span.end));
        let of_windows = window.into_iter().chain(vacant).min();
        [
            of_windows.filter(|_| !frame.holds_windows()),
            self.absent_at(frame),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// Ends what is due at `due`, which is not after `now`.
    pub(super) fn end_next(&mut self, frame: &mut Frame, due: Time, now: Time) -> Option<Closed> {
        if let Some(span) = self
            .first_hopping(frame)
            .filter(|span| frame.due(span.end) == due)
        {
            return Some(self.end_hopping(frame, span, |window| Ending {
                why: Closing::Due,
                end: window.span.end,
                at: due,
                rest: Some(window.span.end),
            }));
        }
        let found = self.windows.iter().enumerate().find_map(|(index, window)| {
            window_due(frame, window)
                .filter(|(at, _)| *at == due)
                .map(|(_, why)| (index, why))
        });
        if let Some((index, why)) = found {
            let window = &self.windows[index];
            let (end, rest) = match why {
                Closing::Full => (due.clamp(window.newest, window.span.end), window.newest),
                _ => (window.span.end, window.span.end),
            };
            return Some(self.end(
                frame,
                index,
                Ending {
                    why,
                    end,
                    at: due,
                    rest: Some(rest),
                },
            ));
        }
        if let Some(vacant) = self.vacant.filter(|vacant| frame.due(vacant.end) == due) {
            return self.report_vacant(frame, vacant, now);
        }
        let seen = self
            .mark
            .last_seen
            .filter(|_| self.absent_at(frame) == Some(due))?;
        self.mark.absent = true;
        let span = Span {
            start: seen,
            end: due,
        };
        Some(self.report_nothing(frame, span, Closing::Absence, due))
    }

    /// Ends every window for a reason that is not its own.
    pub(super) fn end_all(&mut self, frame: &mut Frame, now: Time, why: Closing) -> Vec<Closed> {
        let mut closed = self.end_all_hopping(frame, now, why);
        while !self.windows.is_empty() {
            closed.push(self.end_at(frame, 0, now, why));
        }
        closed
    }

    fn end_at(&mut self, frame: &mut Frame, index: usize, now: Time, why: Closing) -> Closed {
        let ending = Ending::now(&self.windows[index], now, why);
        self.end(frame, index, ending)
    }

    /// Forgets what is after `now`, and ends windows that begin after it. The clock had been at `latest`.
    pub(super) fn set_back(&mut self, frame: &mut Frame, latest: Time, now: Time) -> Vec<Closed> {
        self.prune(frame, latest);
        let mark = &mut self.mark;
        let reopens = mark.closed_until.is_some_and(|until| until > now);
        for cut in [
            &mut mark.closed_until,
            &mut mark.cool_until,
            &mut mark.last_seen,
            &mut mark.empty_from,
        ] {
            *cut = cut.map(|time| time.min(now));
        }
        mark.splits.retain(|split| frame.period(split.from).start <= now);
        for split in &mut mark.splits {
            split.from = split.from.min(now);
        }
        self.stale = true;
        let after = self.windows.partition_point(|window| window.span.start <= now);
        // Windows share messages: an open one may hold some that must not count again in one that comes again.
        if frame.is_hopping() && (reopens || self.hops_after(now)) {
            return self.end_all(frame, now, Closing::Clock);
        }
        (after..self.windows.len())
            .map(|_| self.end_at(frame, after, now, Closing::Clock))
            .collect()
    }

    /// Whether nothing is lost but its mark if it is forgotten.
    pub(super) fn is_idle(&self, frame: &Frame) -> bool {
        let waits = frame.spec.absence.is_some() && !self.mark.absent;
        self.open() == 0 && !waits && !frame.reports_empty() && &*self.name != OTHER
    }

    /// Windows and slices that are open.
    pub(super) fn open(&self) -> usize {
        self.windows.len() + self.slices.len()
    }

    /// Where what is still open of a period begins.
    pub(super) fn floor(&self, period: Span) -> Time {
        let split = self
            .mark
            .splits
            .iter()
            .find(|split| split.end == period.end)
            .map(|split| split.from);
        [split, self.mark.closed_until]
            .into_iter()
            .flatten()
            .fold(period.start, Time::max)
    }

    fn absent_at(&self, frame: &Frame) -> Option<Time> {
        let absence = frame.spec.absence.filter(|_| !self.mark.absent && !frame.held)?;
        Some(self.mark.last_seen?.after(absence))
    }

    fn end(&mut self, frame: &mut Frame, index: usize, ending: Ending) -> Closed {
        let window = self.windows.remove(index);
        self.finish(frame, window, ending)
    }

    pub(super) fn finish(&mut self, frame: &mut Frame, window: Window, ending: Ending) -> Closed {
        self.leave(frame, window.span, ending);
        frame.texts.window_ended();
        if !frame.spec.cool_down.is_zero() {
            self.mark.cool_until = self
                .mark
                .cool_until
                .max(Some(ending.at.after(frame.spec.cool_down)));
        }
        let end = if matches!(frame.spec.kind, WindowKind::Count { .. }) {
            window.newest
        } else {
            ending.end
        };
        let (start, messages, bytes) = (window.span.start, window.messages, window.bytes);
        let late = std::mem::take(&mut self.mark.late);
        let (seqs, forget, facts) = window.finish();
        Closed {
            group: self.name.to_string(),
            start,
            end,
            why: ending.why,
            messages,
            bytes,
            late,
            seqs,
            at: ending.at,
            facts,
            forget,
            mark: self.mark.clone(),
        }
    }

    /// Remembers what is closed now.
    fn leave(&mut self, frame: &mut Frame, span: Span, ending: Ending) {
        self.stale = true;
        let closed_until = &mut self.mark.closed_until;
        match frame.spec.kind {
            WindowKind::Tumbling { .. } | WindowKind::Schedule { .. } => {
                let Some(rest) = ending.rest else { return };
                self.mark.splits.retain(|split| split.end != span.end);
                if rest < span.end {
                    self.mark.splits.push(Split {
                        from: rest,
                        end: span.end,
                    });
                    self.bound_splits();
                } else {
                    *closed_until = (*closed_until).max(Some(span.end));
                    self.pass(frame, span);
                }
                self.prune(frame, ending.at);
            }
            WindowKind::Hopping { .. } if ending.why == Closing::Due => {
                *closed_until = (*closed_until).max(Some(span.end));
                self.pass(frame, span);
            }
            WindowKind::Session { .. } => *closed_until = (*closed_until).max(ending.rest),
            WindowKind::Hopping { .. } | WindowKind::Count { .. } => {}
        }
    }

    /// Closes the oldest periods that go on where there are too many: marks are written at each end of a window.
    fn bound_splits(&mut self) {
        let splits = &mut self.mark.splits;
        while splits.len() > SPLITS {
            let oldest = splits.iter().enumerate().min_by_key(|(_, split)| split.end);
            let Some((index, end)) = oldest.map(|(index, split)| (index, split.end)) else {
                return;
            };
            splits.remove(index);
            self.mark.closed_until = self.mark.closed_until.max(Some(end));
        }
    }

    /// Forgets splits of periods whose time has passed.
    pub(super) fn prune(&mut self, frame: &Frame, at: Time) {
        let closed_until = &mut self.mark.closed_until;
        self.mark.splits.retain(|split| {
            let passed = frame.is_over(split.end, at);
            if passed {
                *closed_until = (*closed_until).max(Some(split.end));
            }
            !passed
        });
    }

    pub(super) fn report_nothing(&mut self, frame: &Frame, span: Span, why: Closing, at: Time) -> Closed {
        Closed {
            group: self.name.to_string(),
            start: span.start,
            end: span.end,
            why,
            messages: 0,
            bytes: 0,
            late: std::mem::take(&mut self.mark.late),
            seqs: Vec::new(),
            at,
            facts: vec![Accumulator::default().finish(); frame.hold.fields],
            forget: Vec::new(),
            mark: self.mark.clone(),
        }
    }
}

/// When a window ends by itself, and why.
fn window_due(frame: &Frame, window: &Window) -> Option<(Time, Closing)> {
    let aged = frame
        .max_age()
        .map(|age| (window.opened.after(age), Closing::Full));
    let due = (!matches!(frame.spec.kind, WindowKind::Count { .. }))
        .then(|| (frame.due(window.span.end), Closing::Due));
    match (due, aged) {
        (Some(due), Some(aged)) => Some(if aged.0 < due.0 { aged } else { due }),
        (due, aged) => due.or(aged),
    }
}
