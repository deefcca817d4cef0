//! Windows by local clocks: days of 23 and 25 hours, shifts by half an hour, midnights that are not there.

use std::time::Duration;

use jiff::Timestamp;
use jiff::civil::time;
use jiff::tz::TimeZone;
use phi_edge_rules::{Time, Weekdays, WindowKind, WindowOperator, WindowSpec};

use crate::kinds::message;

const HOUR: Duration = Duration::from_hours(1);
const DAY: Duration = Duration::from_hours(24);

fn moment(text: &str) -> Time {
    Time(text.parse::<Timestamp>().unwrap().as_millisecond())
}

/// The window of one message.
#[track_caller]
fn check_span(zone: &str, kind: WindowKind, arrived: &str, expected: (&str, &str)) {
    let spec = WindowSpec {
        zone: TimeZone::get(zone).unwrap(),
        ..WindowSpec::new(kind)
    };
    let mut windows = WindowOperator::new(spec, 0, 0, false);
    windows.ingest(&message(1, moment(arrived)));
    assert_eq!(windows.due(), Some(moment(expected.1)), "{zone} {arrived}");
    let closed = windows.tick(moment(expected.1));
    assert_eq!(
        (closed[0].start, closed[0].end),
        (moment(expected.0), moment(expected.1)),
        "{zone} {arrived}"
    );
}

#[test]
fn tumbling_windows_follow_local_days() {
    let cases = [
        // 23 and 25 hours.
        (
            "Europe/Berlin",
            6 * HOUR,
            "2024-03-31T21:59:59Z",
            ("2024-03-31T17:00:00Z", "2024-03-31T22:00:00Z"),
        ),
        (
            "Europe/Berlin",
            6 * HOUR,
            "2024-03-31T01:00:00Z",
            ("2024-03-30T23:00:00Z", "2024-03-31T05:00:00Z"),
        ),
        (
            "Europe/Berlin",
            6 * HOUR,
            "2024-10-27T22:30:00Z",
            ("2024-10-27T22:00:00Z", "2024-10-27T23:00:00Z"),
        ),
        (
            "Europe/Berlin",
            DAY,
            "2024-10-27T12:00:00Z",
            ("2024-10-26T22:00:00Z", "2024-10-27T23:00:00Z"),
        ),
        // Half an hour more, half an hour less.
        (
            "Australia/Lord_Howe",
            DAY,
            "2024-04-07T13:15:00Z",
            ("2024-04-06T13:00:00Z", "2024-04-07T13:30:00Z"),
        ),
        (
            "Australia/Lord_Howe",
            HOUR,
            "2024-04-07T13:15:00Z",
            ("2024-04-07T13:00:00Z", "2024-04-07T13:30:00Z"),
        ),
        (
            "Australia/Lord_Howe",
            DAY,
            "2024-10-06T00:00:00Z",
            ("2024-10-05T13:30:00Z", "2024-10-06T13:00:00Z"),
        ),
        // A midnight that does not exist, and a day that does not.
        (
            "America/Sao_Paulo",
            DAY,
            "2018-11-04T12:00:00Z",
            ("2018-11-04T03:00:00Z", "2018-11-05T02:00:00Z"),
        ),
        (
            "Pacific/Apia",
            DAY,
            "2011-12-30T09:00:00Z",
            ("2011-12-29T10:00:00Z", "2011-12-30T10:00:00Z"),
        ),
        // A midnight that comes twice.
        (
            "America/Havana",
            DAY,
            "2024-11-03T05:30:00Z",
            ("2024-11-03T04:00:00Z", "2024-11-04T05:00:00Z"),
        ),
        // Lengths that do not divide a day.
        (
            "UTC",
            7 * HOUR,
            "2024-05-01T23:00:00Z",
            ("2024-05-01T21:00:00Z", "2024-05-02T00:00:00Z"),
        ),
        // Days from 1970-01-01, weeks from a Monday.
        (
            "UTC",
            2 * DAY,
            "1970-01-04T00:00:00Z",
            ("1970-01-03T00:00:00Z", "1970-01-05T00:00:00Z"),
        ),
        (
            "UTC",
            2 * DAY,
            "1969-12-31T00:00:00Z",
            ("1969-12-30T00:00:00Z", "1970-01-01T00:00:00Z"),
        ),
        (
            "Europe/Berlin",
            7 * DAY,
            "2024-03-31T12:00:00Z",
            ("2024-03-24T23:00:00Z", "2024-03-31T22:00:00Z"),
        ),
        (
            "UTC",
            14 * DAY,
            "1970-01-06T00:00:00Z",
            ("1970-01-05T00:00:00Z", "1970-01-19T00:00:00Z"),
        ),
    ];
    for (zone, every, arrived, expected) in cases {
        check_span(zone, WindowKind::Tumbling { every }, arrived, expected);
    }
}

#[test]
fn schedules_follow_local_clocks() {
    let half_past_two = || vec![time(2, 30, 0, 0), time(6, 0, 0, 0)];
    let all = Weekdays::ALL;
    let weekdays = Weekdays(0b001_1111);
    let cases = [
        // 02:30 does not exist: 03:00 instead.
        (
            "Europe/Berlin",
            half_past_two(),
            all,
            "2024-03-31T00:30:00Z",
            ("2024-03-30T05:00:00Z", "2024-03-31T01:00:00Z"),
        ),
        (
            "Europe/Berlin",
            half_past_two(),
            all,
            "2024-03-31T01:10:00Z",
            ("2024-03-31T01:00:00Z", "2024-03-31T04:00:00Z"),
        ),
        // 02:30 comes twice: the first.
        (
            "Europe/Berlin",
            half_past_two(),
            all,
            "2024-10-27T01:30:00Z",
            ("2024-10-27T00:30:00Z", "2024-10-27T05:00:00Z"),
        ),
        (
            "Australia/Lord_Howe",
            vec![time(2, 15, 0, 0)],
            all,
            "2024-10-05T15:29:00Z",
            ("2024-10-04T15:45:00Z", "2024-10-05T15:30:00Z"),
        ),
        (
            "Australia/Lord_Howe",
            vec![time(1, 45, 0, 0)],
            all,
            "2024-04-06T15:15:00Z",
            ("2024-04-06T14:45:00Z", "2024-04-07T15:15:00Z"),
        ),
        // Shifts.
        (
            "UTC",
            vec![time(6, 0, 0, 0), time(14, 0, 0, 0), time(22, 0, 0, 0)],
            all,
            "2024-05-02T01:00:00Z",
            ("2024-05-01T22:00:00Z", "2024-05-02T06:00:00Z"),
        ),
        (
            "UTC",
            vec![time(6, 0, 0, 0)],
            weekdays,
            "2024-05-04T12:00:00Z",
            ("2024-05-03T06:00:00Z", "2024-05-06T06:00:00Z"),
        ),
        (
            "UTC",
            vec![time(6, 0, 0, 0)],
            weekdays,
            "2024-05-06T06:00:00Z",
            ("2024-05-06T06:00:00Z", "2024-05-07T06:00:00Z"),
        ),
        (
            "UTC",
            vec![time(6, 0, 0, 0)],
            Weekdays(1),
            "2024-05-06T05:00:00Z",
            ("2024-04-29T06:00:00Z", "2024-05-06T06:00:00Z"),
        ),
    ];
    for (zone, at, days, arrived, expected) in cases {
        check_span(zone, WindowKind::Schedule { at, days }, arrived, expected);
    }
}
