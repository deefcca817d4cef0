//! Periods of local time, searched for each question.

use jiff::civil::{self, date};
use jiff::{SignedDuration, Timestamp, ToSpan};
use phi_edge_rules::{Time, WindowKind, WindowSpec};

use crate::expected::Span;

/// The period that `t` lies in. Boundaries of schedules are not looked for in gaps of the local clock.
pub(crate) fn period_of(spec: &WindowSpec, t: Time) -> Span {
    let zone = &spec.zone;
    let local = Timestamp::from_millisecond(t.0)
        .unwrap()
        .to_zoned_datetime(zone.clone());
    let midnight = |date: civil::Date| {
        Time(
            date.to_zoned_datetime(zone.clone())
                .unwrap()
                .start_of_day()
                .unwrap()
                .timestamp()
                .as_millisecond(),
        )
    };
    let today = local.date();
    match &spec.kind {
        WindowKind::Tumbling { every } | WindowKind::Hopping { every, .. } => {
            let days = every.as_secs() / 86_400;
            if days == 0 {
                let end = midnight(today.tomorrow().unwrap());
                let from = midnight(today);
                let into = t.since(from).as_millis() / every.as_millis();
                let start = from.after(*every * u32::try_from(into).unwrap());
                return (start, start.after(*every).min(end));
            }
            let base = if days.is_multiple_of(7) {
                date(1970, 1, 5)
            } else {
                date(1970, 1, 1)
            };
            let since = today.duration_since(base).as_hours() / 24;
            let days = i64::try_from(days).unwrap();
            let first = base + SignedDuration::from_hours(24 * (since / days) * days);
            (midnight(first), midnight(first + days.days()))
        }
        WindowKind::Schedule { at, days } => {
            let dates = (-9..=9).map(|offset: i64| today + offset.days());
            let mut boundaries: Vec<Time> = dates
                .filter(|date| days.contains(date.weekday()))
                .flat_map(|date| at.iter().map(move |at| date.to_datetime(*at)))
                .map(|local| {
                    Time(
                        local
                            .to_zoned_datetime(zone.clone())
                            .unwrap()
                            .timestamp()
                            .as_millisecond(),
                    )
                })
                .collect();
            boundaries.sort_unstable();
            let next = boundaries.iter().position(|boundary| *boundary > t).unwrap();
            (boundaries[next - 1], boundaries[next])
        }
        WindowKind::Session { .. } | WindowKind::Count { .. } => unreachable!("it has no periods"),
    }
}
