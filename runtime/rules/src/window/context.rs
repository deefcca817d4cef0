//! The context of a rule's windows: what all of its groups share.

use std::time::Duration;

use super::calendar::{Calendar, Span, bounded};
use super::open_window::RetentionLimits;
use crate::facts::TextPool;
use crate::{Time, TimeSource, WindowKind, WindowSpec};

/// The farthest that an event time may be ahead of the arrival. Clocks differ by seconds; an event time that is farther
/// ahead is wrong, and would keep a window open until that time comes.
const MAX_CLOCK_SKEW: Duration = Duration::from_mins(1);

/// A rule's window specification, with its calendar, its limits and the texts of its windows.
#[derive(Debug)]
pub(super) struct WindowContext {
    pub(super) spec: WindowSpec,
    pub(super) limits: RetentionLimits,
    /// The interned texts of its windows.
    pub(super) texts: TextPool,
    /// `None` for kinds without periods.
    calendar: Option<Calendar>,
    lateness: Duration,
    /// Whether event time is held.
    pub(super) held: bool,
}

impl WindowContext {
    pub(super) fn new(spec: WindowSpec, fields: usize, keep_messages: usize) -> Self {
        // The message that exceeds the rate, and as many as are allowed before it.
        let recent = spec.early_rate.map_or(0, |(most, _)| {
            usize::try_from(most.saturating_add(1)).unwrap_or(usize::MAX)
        });
        let lateness = match spec.time {
            TimeSource::Arrival => Duration::ZERO,
            TimeSource::Field { lateness, .. } => lateness,
        };
        let calendar = Calendar::of(&spec.kind, spec.zone.clone());
        Self {
            spec,
            limits: RetentionLimits {
                fields,
                kept: keep_messages,
                keeps_first: false,
                recent,
            },
            texts: TextPool::default(),
            calendar,
            lateness,
            held: false,
        }
    }

    /// The timestamp of a message: its event time where the rule counts by it and it is credible, else its arrival.
    pub(super) fn timestamp_of(&self, event_time: Option<Time>, arrived: Time) -> Time {
        let believed = arrived.after(self.lateness.max(MAX_CLOCK_SKEW));
        let event_time = match self.spec.time {
            TimeSource::Arrival => None,
            TimeSource::Field { .. } => event_time.filter(|event_time| *event_time <= believed),
        };
        bounded(event_time.unwrap_or(arrived))
    }

    /// When the watermark passes the end of a window.
    pub(super) fn due(&self, end: Time) -> Time {
        end.after(self.lateness)
    }

    /// Whether the watermark at `at` has passed the end of a window.
    pub(super) fn watermark_passed(&self, end: Time, at: Time) -> bool {
        !self.holds_event_time() && self.due(end) <= at
    }

    /// The watermark at `at`; `None` while event time is held.
    pub(super) fn watermark(&self, at: Time) -> Option<Time> {
        (!self.holds_event_time()).then(|| at.before(self.lateness))
    }

    /// Whether the watermark stands still. That of arrivals never does: what arrives later belongs to later windows.
    pub(super) fn holds_event_time(&self) -> bool {
        self.held && matches!(self.spec.time, TimeSource::Field { .. })
    }

    /// The period that `t` lies in; all time for kinds without periods.
    pub(super) fn period(&mut self, t: Time) -> Span {
        let all = Span {
            start: Time(i64::MIN),
            end: Time(i64::MAX),
        };
        self.calendar.as_mut().map_or(all, |calendar| calendar.period(t))
    }

    /// The period before `period`.
    pub(super) fn period_before(&mut self, period: Span) -> Span {
        self.period(Time(period.start.0.saturating_sub(1)))
    }

    /// The last period all of whose windows are due at `now`.
    pub(super) fn last_due_period(&mut self, now: Time) -> Span {
        let passed = now.before(self.lateness);
        if let WindowKind::Hopping { length, .. } = self.spec.kind {
            return self.period(passed.before(length));
        }
        let current = self.period(passed);
        self.period_before(current)
    }

    /// Whether windows without messages are reported.
    pub(super) fn reports_empty(&self) -> bool {
        self.spec.empty && self.calendar.is_some()
    }

    /// The greatest age of a window; `None` for kinds with periods.
    pub(super) fn max_age(&self) -> Option<Duration> {
        self.spec.max_age.filter(|_| self.calendar.is_none())
    }

    pub(super) fn is_hopping(&self) -> bool {
        matches!(self.spec.kind, WindowKind::Hopping { .. })
    }
}
