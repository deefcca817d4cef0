//! The calendar of a rule: the periods of local time.

use std::time::Duration;

use jiff::civil::{self, Date, DateTime};
use jiff::tz::{AmbiguousOffset, TimeZone};
use jiff::{SignedDuration, Timestamp};

use crate::{Time, Weekdays, WindowKind};

/// The farthest moment from 1970 in milliseconds: some 4,400 years, within which no arithmetic on dates fails.
const MAX_MILLIS: i64 = 1 << 47;

const DAY: Duration = Duration::from_hours(24);

const EPOCH: Date = civil::date(1970, 1, 1);

/// 1970-01-01 was a Thursday; the first Monday came four days later.
const FIRST_MONDAY: i64 = 4;

/// Days searched for the next boundary of a schedule: a week for one day a week, and two for days that a zone skips or
/// repeats.
const SEARCH_DAYS: i64 = 9;

/// A half-open interval of time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Span {
    pub(super) start: Time,
    pub(super) end: Time,
}

impl Span {
    pub(super) fn contains(self, t: Time) -> bool {
        self.start <= t && t < self.end
    }
}

/// The nearest moment that [`Calendar::period`] takes.
pub(super) fn bounded(t: Time) -> Time {
    Time(t.0.clamp(-MAX_MILLIS, MAX_MILLIS))
}

/// Divides local time into periods, none of which is empty.
#[derive(Debug)]
pub(super) struct Calendar {
    zone: TimeZone,
    grid: Grid,
    /// The last answer: most questions are about the same period.
    cached: Option<Span>,
}

#[derive(Debug)]
enum Grid {
    /// Each day is divided from its midnight into parts of this many milliseconds.
    WithinDay(i64),
    /// Periods of whole days, counted from the day `base` since 1970.
    Days { every: i64, base: i64 },
    /// From one of these local times to the next.
    Schedule { at: Vec<civil::Time>, days: Weekdays },
}

impl Calendar {
    /// The periods of a kind of window; `None` for kinds without.
    pub(super) fn of(kind: &WindowKind, zone: TimeZone) -> Option<Self> {
        let grid = match kind {
            WindowKind::Tumbling { every } | WindowKind::Hopping { every, .. } => Grid::every(*every),
            WindowKind::Schedule { at, days } => Grid::Schedule {
                at: at.clone(),
                days: *days,
            },
            WindowKind::Session { .. } | WindowKind::Count { .. } => return None,
        };
        Some(Self {
            zone,
            grid,
            cached: None,
        })
    }

    /// The period that `t` lies in.
    pub(super) fn period(&mut self, t: Time) -> Span {
        let t = bounded(t);
        let cached = match self.cached {
            Some(cached) if cached.contains(t) => cached,
            _ => {
                let found = match &self.grid {
                    Grid::WithinDay(_) => self.day(t).1,
                    Grid::Days { every, base } => self.days(t, *every, *base),
                    Grid::Schedule { at, days } => self.scheduled(t, at, *days),
                };
                self.cached = Some(found);
                found
            }
        };
        let Grid::WithinDay(every) = self.grid else {
            return cached;
        };
        let start = t.0 - (t.0 - cached.start.0).rem_euclid(every);
        Span {
            start: Time(start),
            end: Time(start.saturating_add(every)).min(cached.end),
        }
    }

    /// The local day that `t` lies in. Where a zone repeats a midnight, the day begins with the first.
    fn day(&self, t: Time) -> (Date, Span) {
        let mut date = self.zone.to_datetime(timestamp(t)).date();
        if t < self.midnight(date) {
            date = shifted(date, -1);
        }
        let mut span = Span {
            start: self.midnight(date),
            end: self.midnight(shifted(date, 1)),
        };
        // A repeated midnight makes the clock show the day before again; a day that a zone skips has no length.
        for _ in 0..2 {
            if span.contains(t) {
                break;
            }
            date = shifted(date, 1);
            span = Span {
                start: span.end,
                end: self.midnight(shifted(date, 1)),
            };
        }
        (date, span)
    }

    fn days(&self, t: Time, every: i64, base: i64) -> Span {
        let since_epoch = self.day(t).0.duration_since(EPOCH).as_hours() / 24;
        let first = (since_epoch - base).div_euclid(every) * every + base;
        Span {
            start: self.midnight(shifted(EPOCH, first)),
            end: self.midnight(shifted(EPOCH, first.saturating_add(every))),
        }
    }

    fn scheduled(&self, t: Time, at: &[civil::Time], days: Weekdays) -> Span {
        let today = self.zone.to_datetime(timestamp(t)).date();
        let boundaries = |offset: i64| {
            let date = shifted(today, offset);
            let held = if days.contains(date.weekday()) { at } else { &[] };
            held.iter().map(move |at| self.moment(date.to_datetime(*at)))
        };
        let start = (-SEARCH_DAYS..=1)
            .rev()
            .find_map(|offset| boundaries(offset).rev().find(|b| *b <= t));
        let end = (-1..=SEARCH_DAYS).find_map(|offset| boundaries(offset).find(|b| *b > t));
        Span {
            start: start.unwrap_or(Time(-MAX_MILLIS)),
            end: end.unwrap_or(Time(MAX_MILLIS + 1)),
        }
    }

    fn midnight(&self, date: Date) -> Time {
        self.moment(date.to_datetime(civil::Time::midnight()))
    }

    /// The first moment at which local clocks show `local` or later: in a gap its end, in a fold the first of the two.
    fn moment(&self, local: DateTime) -> Time {
        let found = match self.zone.to_ambiguous_timestamp(local).offset() {
            AmbiguousOffset::Unambiguous { offset } => offset.to_timestamp(local),
            AmbiguousOffset::Fold { before, .. } => before.to_timestamp(local),
            // With the offset that holds after the gap, a time in the gap is a moment before it.
            AmbiguousOffset::Gap { after, .. } => after.to_timestamp(local).map(|earlier| {
                self.zone
                    .following(earlier)
                    .next()
                    .map_or(earlier, |transition| transition.timestamp())
            }),
        };
        found.map_or(Time(MAX_MILLIS + 1), |found| Time(found.as_millisecond()))
    }
}

impl Grid {
    fn every(every: Duration) -> Self {
        let (whole, rest) = (
            every.as_secs() / DAY.as_secs(),
            every.as_millis() % DAY.as_millis(),
        );
        if whole == 0 || rest != 0 {
            return Self::WithinDay(i64::try_from(every.as_millis()).unwrap_or(i64::MAX).max(1));
        }
        let every = i64::try_from(whole).unwrap_or(i64::MAX);
        Self::Days {
            every,
            base: if every % 7 == 0 { FIRST_MONDAY } else { 0 },
        }
    }
}

fn timestamp(t: Time) -> Timestamp {
    // The bound lies well within the range of a timestamp.
    Timestamp::from_millisecond(bounded(t).0).unwrap_or(Timestamp::UNIX_EPOCH)
}

fn shifted(date: Date, days: i64) -> Date {
    days.checked_mul(24)
        .and_then(|hours| date.checked_add(SignedDuration::from_hours(hours)).ok())
        .unwrap_or(if days < 0 { Date::MIN } else { Date::MAX })
}
