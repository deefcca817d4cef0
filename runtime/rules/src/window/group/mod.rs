//! The windows of one group, and how they end.

mod assign;
mod empty;
mod hopping;

use std::sync::Arc;
use std::time::Duration;

use self::assign::{Arrival, Assignment};
use self::hopping::Slice;
use super::{Checkpoint, CloseReason, ClosedWindow, OVERFLOW_GROUP, PeriodRemainder, WindowMessage};
use crate::facts::Accumulator;
use crate::window::calendar::Span;
use crate::window::context::WindowContext;
use crate::window::open_window::OpenWindow;
use crate::{Time, WindowKind};

/// A window that ends with a message ends just after it.
const CLOSE_OFFSET: Duration = Duration::from_millis(1);

/// The most periods of a group that go on after a first part of them has closed. Messages of a field's time may be of any
/// period for as long as the rule waits for late ones.
const MAX_REMAINDERS: usize = 1000;

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

/// How a window ends.
#[derive(Debug, Clone, Copy)]
pub(super) struct WindowEnd {
    reason: CloseReason,
    end: Time,
    /// The moment by the clock.
    at: Time,
    /// Where the rest of its period begins; none if what came before is to be forgotten.
    remainder_from: Option<Time>,
}

impl WindowEnd {
    /// For a reason that is not the window's own.
    pub(super) fn now(window: &OpenWindow, now: Time, reason: CloseReason) -> Self {
        Self {
            reason,
            end: now.max(window.newest).min(window.span.end),
            at: now,
            remainder_from: (reason != CloseReason::Clock)
                .then(|| window.newest.min(now).max(window.span.start)),
        }
    }
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
            Assignment::Window(index) if !replayed => self.end_with(context, index, o, time),
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

    fn end_with(
        &mut self,
        context: &mut WindowContext,
        index: usize,
        o: &WindowMessage,
        time: Time,
    ) -> Option<ClosedWindow> {
        let window = &self.windows[index];
        let spec = &context.spec;
        let cooled_down = self.has_cooled_down(o.arrived);
        let too_many = spec.early_rate.is_some_and(|(most, within)| {
            let back = usize::try_from(most).unwrap_or(usize::MAX);
            window
                .arrival_before(back)
                .is_some_and(|before| o.arrived < before.after(within))
        });
        let full = spec.max_messages.is_some_and(|most| window.messages >= most)
            || spec.max_bytes.is_some_and(|most| window.bytes >= most);
        let reason = if cooled_down && (o.early || too_many) {
            CloseReason::Early
        } else if full {
            CloseReason::Full
        } else if matches!(spec.kind, WindowKind::Count { messages } if window.messages >= messages) {
            CloseReason::Due
        } else {
            return None;
        };
        let end = time.after(CLOSE_OFFSET).min(window.span.end);
        Some(self.end(
            context,
            index,
            WindowEnd {
                reason,
                end,
                at: o.arrived,
                remainder_from: Some(time),
            },
        ))
    }

    /// When [`Self::end_next`] has something to do.
    pub(super) fn due(&mut self, context: &mut WindowContext) -> Option<Time> {
        if self.stale {
            self.stale = false;
            self.empty_window = self.find_empty_window(context);
        }
        let window = match context.spec.kind {
            WindowKind::Session { .. } | WindowKind::Count { .. } => self
                .windows
                .iter()
                .filter_map(|window| window_due(context, window))
                .map(|(due, _)| due)
                .min(),
            WindowKind::Hopping { .. } => self.first_hopping(context).map(|span| context.due(span.end)),
            _ => self.windows.first().map(|window| context.due(window.span.end)),
        };
        let empty_window = self.empty_window.map(|span| context.due(span.end));
        let of_windows = window.into_iter().chain(empty_window).min();
        [
            of_windows.filter(|_| !context.holds_event_time()),
            self.absent_at(context),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// Ends what is due at `due`, which is not after `now`.
    pub(super) fn end_next(
        &mut self,
        context: &mut WindowContext,
        due: Time,
        now: Time,
    ) -> Option<ClosedWindow> {
        if let Some(span) = self
            .first_hopping(context)
            .filter(|span| context.due(span.end) == due)
        {
            return Some(self.end_hopping(context, span, |window| WindowEnd {
                reason: CloseReason::Due,
                end: window.span.end,
                at: due,
                remainder_from: Some(window.span.end),
            }));
        }
        let found = self.windows.iter().enumerate().find_map(|(index, window)| {
            window_due(context, window)
                .filter(|(at, _)| *at == due)
                .map(|(_, reason)| (index, reason))
        });
        if let Some((index, reason)) = found {
            let window = &self.windows[index];
            let (end, remainder_from) = match reason {
                CloseReason::Full => (due.clamp(window.newest, window.span.end), window.newest),
                _ => (window.span.end, window.span.end),
            };
            return Some(self.end(
                context,
                index,
                WindowEnd {
                    reason,
                    end,
                    at: due,
                    remainder_from: Some(remainder_from),
                },
            ));
        }
        if let Some(empty_window) = self
            .empty_window
            .filter(|empty_window| context.due(empty_window.end) == due)
        {
            return self.report_empty_window(context, empty_window, now);
        }
        let seen = self
            .checkpoint
            .last_seen
            .filter(|_| self.absent_at(context) == Some(due))?;
        self.checkpoint.absent = true;
        let span = Span {
            start: seen,
            end: due,
        };
        Some(self.report_without_messages(context, span, CloseReason::Absence, due))
    }

    /// Ends every window for a reason that is not its own.
    pub(super) fn end_all(
        &mut self,
        context: &mut WindowContext,
        now: Time,
        reason: CloseReason,
    ) -> Vec<ClosedWindow> {
        let mut closed = self.end_all_hopping(context, now, reason);
        while !self.windows.is_empty() {
            closed.push(self.end_at(context, 0, now, reason));
        }
        closed
    }

    fn end_at(
        &mut self,
        context: &mut WindowContext,
        index: usize,
        now: Time,
        reason: CloseReason,
    ) -> ClosedWindow {
        let ending = WindowEnd::now(&self.windows[index], now, reason);
        self.end(context, index, ending)
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
            return self.end_all(context, now, CloseReason::Clock);
        }
        (after..self.windows.len())
            .map(|_| self.end_at(context, after, now, CloseReason::Clock))
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

    fn absent_at(&self, context: &WindowContext) -> Option<Time> {
        let absence = context
            .spec
            .absence
            .filter(|_| !self.checkpoint.absent && !context.held)?;
        Some(self.checkpoint.last_seen?.after(absence))
    }

    fn end(&mut self, context: &mut WindowContext, index: usize, ending: WindowEnd) -> ClosedWindow {
        let window = self.windows.remove(index);
        self.finish(context, window, ending)
    }

    pub(super) fn finish(
        &mut self,
        context: &mut WindowContext,
        window: OpenWindow,
        ending: WindowEnd,
    ) -> ClosedWindow {
        self.record_close(context, window.span, ending);
        context.texts.window_ended();
        if !context.spec.cool_down.is_zero() {
            self.checkpoint.cool_until = self
                .checkpoint
                .cool_until
                .max(Some(ending.at.after(context.spec.cool_down)));
        }
        let end = if matches!(context.spec.kind, WindowKind::Count { .. }) {
            window.newest
        } else {
            ending.end
        };
        let (start, messages, bytes) = (window.span.start, window.messages, window.bytes);
        let late = std::mem::take(&mut self.checkpoint.late);
        let (seqs, forget, facts) = window.finish();
        ClosedWindow {
            group: self.name.to_string(),
            start,
            end,
            reason: ending.reason,
            messages,
            bytes,
            late,
            seqs,
            at: ending.at,
            facts,
            forget,
            checkpoint: self.checkpoint.clone(),
        }
    }

    /// Remembers what is closed now.
    fn record_close(&mut self, context: &mut WindowContext, span: Span, ending: WindowEnd) {
        self.stale = true;
        let closed_until = &mut self.checkpoint.closed_until;
        match context.spec.kind {
            WindowKind::Tumbling { .. } | WindowKind::Schedule { .. } => {
                let Some(remainder_from) = ending.remainder_from else {
                    return;
                };
                self.checkpoint
                    .remainders
                    .retain(|remainder| remainder.end != span.end);
                if remainder_from < span.end {
                    self.checkpoint.remainders.push(PeriodRemainder {
                        from: remainder_from,
                        end: span.end,
                    });
                    self.bound_remainders();
                } else {
                    *closed_until = (*closed_until).max(Some(span.end));
                    self.skip_empty_until(context, span);
                }
                self.prune_remainders(context, ending.at);
            }
            WindowKind::Hopping { .. } if ending.reason == CloseReason::Due => {
                *closed_until = (*closed_until).max(Some(span.end));
                self.skip_empty_until(context, span);
            }
            WindowKind::Session { .. } => *closed_until = (*closed_until).max(ending.remainder_from),
            WindowKind::Hopping { .. } | WindowKind::Count { .. } => {}
        }
    }

    /// Closes the oldest periods that go on where there are too many: checkpoints are written at each end of a window.
    fn bound_remainders(&mut self) {
        let remainders = &mut self.checkpoint.remainders;
        while remainders.len() > MAX_REMAINDERS {
            let oldest = remainders
                .iter()
                .enumerate()
                .min_by_key(|(_, remainder)| remainder.end);
            let Some((index, end)) = oldest.map(|(index, remainder)| (index, remainder.end)) else {
                return;
            };
            remainders.remove(index);
            self.checkpoint.closed_until = self.checkpoint.closed_until.max(Some(end));
        }
    }

    /// Forgets remainders of periods whose time has passed.
    pub(super) fn prune_remainders(&mut self, context: &WindowContext, at: Time) {
        let closed_until = &mut self.checkpoint.closed_until;
        self.checkpoint.remainders.retain(|remainder| {
            let passed = context.watermark_passed(remainder.end, at);
            if passed {
                *closed_until = (*closed_until).max(Some(remainder.end));
            }
            !passed
        });
    }

    pub(super) fn report_without_messages(
        &mut self,
        context: &WindowContext,
        span: Span,
        reason: CloseReason,
        at: Time,
    ) -> ClosedWindow {
        ClosedWindow {
            group: self.name.to_string(),
            start: span.start,
            end: span.end,
            reason,
            messages: 0,
            bytes: 0,
            late: std::mem::take(&mut self.checkpoint.late),
            seqs: Vec::new(),
            at,
            facts: vec![Accumulator::default().finish(); context.limits.fields],
            forget: Vec::new(),
            checkpoint: self.checkpoint.clone(),
        }
    }
}

/// When a window ends by itself, and why.
fn window_due(context: &WindowContext, window: &OpenWindow) -> Option<(Time, CloseReason)> {
    let aged = context
        .max_age()
        .map(|age| (window.opened.after(age), CloseReason::Full));
    let due = (!matches!(context.spec.kind, WindowKind::Count { .. }))
        .then(|| (context.due(window.span.end), CloseReason::Due));
    match (due, aged) {
        (Some(due), Some(aged)) => Some(if aged.0 < due.0 { aged } else { due }),
        (due, aged) => due.or(aged),
    }
}
