//! Each kind of window by examples.

use std::time::Duration;

use phi_edge_rules::{
    CloseReason, ClosedWindow, Time, TimeSource, Value, WindowKind, WindowMessage, WindowOperator, WindowSpec,
};

fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

fn tumbling(every: u64) -> WindowSpec {
    WindowSpec::new(WindowKind::Tumbling {
        every: seconds(every),
    })
}

fn stamped(spec: WindowSpec, lateness: u64) -> WindowSpec {
    let time = TimeSource::Field {
        pointer: String::from("/t"),
        lateness: seconds(lateness),
    };
    WindowSpec { time, ..spec }
}

/// One thing that happens, at a second.
enum Do {
    /// A message of group "".
    Come(u64),
    /// A message whose own time is the second one.
    Stamp(u64, u64),
    /// A message that meets the condition.
    Alarm(u64),
    /// A message of a group.
    Of(&'static str, u64),
    Tick(u64),
    Back(u64),
    Close(u64),
}

fn at(second: u64) -> Time {
    Time(i64::try_from(second).unwrap() * 1_000)
}

pub(crate) fn message(seq: u64, arrived: Time) -> WindowMessage {
    WindowMessage {
        seq,
        arrived,
        event_time: None,
        group: String::new(),
        bytes: 10,
        early: false,
        values: Vec::new(),
    }
}

fn line(closed: &ClosedWindow) -> String {
    let ClosedWindow {
        group,
        start,
        end,
        reason,
        messages,
        late,
        ..
    } = closed;
    let group = if group.is_empty() {
        String::new()
    } else {
        format!("{group} ")
    };
    let late = if *late == 0 {
        String::new()
    } else {
        format!(" late {late}")
    };
    format!(
        "{group}{}..{} {} {messages}{late}",
        start.0,
        end.0,
        reason.as_str()
    )
}

#[track_caller]
fn check(spec: WindowSpec, script: &[Do], expected: &[&str]) {
    let grouped = script.iter().any(|step| matches!(step, Do::Of(..)));
    let mut windows = WindowOperator::new(spec, 0, 3, grouped);
    let mut closed = Vec::new();
    for (seq, step) in (1..).zip(script) {
        closed.extend(match step {
            Do::Come(now) => windows.ingest(&message(seq, at(*now))).closed,
            Do::Stamp(now, event_time) => {
                windows
                    .ingest(&WindowMessage {
                        event_time: Some(at(*event_time)),
                        ..message(seq, at(*now))
                    })
                    .closed
            }
            Do::Alarm(now) => {
                windows
                    .ingest(&WindowMessage {
                        early: true,
                        ..message(seq, at(*now))
                    })
                    .closed
            }
            Do::Of(group, now) => {
                let group = (*group).to_owned();
                windows
                    .ingest(&WindowMessage {
                        group,
                        ..message(seq, at(*now))
                    })
                    .closed
            }
            Do::Tick(now) => windows.tick(at(*now)),
            Do::Back(now) => windows.set_back(at(*now)),
            Do::Close(now) => windows.close_all(at(*now), CloseReason::Reload),
        });
    }
    let lines: Vec<String> = closed.iter().map(line).collect();
    assert_eq!(lines, expected);
}

use Do::{Alarm, Back, Close, Come, Of, Stamp, Tick};

#[test]
fn tumbling_windows_end_at_their_end_and_wait_for_late_messages() {
    check(
        tumbling(10),
        &[Come(1), Come(9), Come(10), Tick(20)],
        &["0..10000 due 2", "10000..20000 due 1"],
    );
    let waits = || stamped(tumbling(10), 5);
    check(waits(), &[Come(9), Stamp(14, 8), Tick(15)], &["0..10000 due 2"]);
    check(waits(), &[Come(9), Stamp(15, 8), Tick(25)], &["0..10000 due 1"]);
    check(
        waits(),
        &[Come(9), Stamp(15, 8), Come(16), Tick(25)],
        &["0..10000 due 1", "10000..20000 due 1 late 1"],
    );
    // A stamp far ahead is not believed.
    check(waits(), &[Stamp(3, 64), Close(3)], &["0..3000 reload 1"]);
    check(waits(), &[Stamp(3, 63), Close(3)], &["60000..63000 reload 1"]);
}

#[test]
fn early_ends_leave_a_rest_of_the_period() {
    check(
        tumbling(60),
        &[Come(1), Alarm(2), Come(2), Come(50), Tick(60)],
        &["0..2001 early 2", "2000..60000 due 2"],
    );
    let rate = || WindowSpec {
        early_rate: Some((2, seconds(5))),
        ..tumbling(60)
    };
    check(
        rate(),
        &[Come(1), Come(3), Come(6), Close(7)],
        &["0..7000 reload 3"],
    );
    check(
        rate(),
        &[Come(1), Come(3), Come(5), Close(7)],
        &["0..5001 early 3"],
    );
    let cooled = WindowSpec {
        cool_down: seconds(20),
        max_messages: Some(3),
        ..tumbling(60)
    };
    check(
        cooled,
        &[
            Alarm(1),
            Alarm(20),
            Alarm(21),
            Come(22),
            Come(23),
            Come(24),
            Alarm(44),
        ],
        &[
            "0..1001 early 1",
            "1000..21001 early 2",
            "21000..24001 full 3",
            "24000..44001 early 1",
        ],
    );
    let bytes = WindowSpec {
        max_bytes: Some(20),
        ..tumbling(60)
    };
    check(bytes, &[Come(1), Come(2), Come(3)], &["0..2001 full 2"]);
}

#[test]
fn hopping_windows_share_messages() {
    let kind = WindowKind::Hopping {
        every: seconds(10),
        length: seconds(25),
    };
    check(
        WindowSpec::new(kind),
        &[Come(21), Come(31), Tick(60)],
        &[
            "0..25000 due 1",
            "10000..35000 due 2",
            "20000..45000 due 2",
            "30000..55000 due 1",
        ],
    );
}

#[test]
fn sessions_end_by_silence_and_grow_together() {
    let session = || WindowSpec::new(WindowKind::Session { gap: seconds(10) });
    check(
        session(),
        &[Come(1), Come(10), Come(20), Tick(30)],
        &["1000..20000 due 2", "20000..30000 due 1"],
    );
    check(
        stamped(session(), 20),
        &[Stamp(10, 10), Stamp(25, 25), Stamp(26, 18), Tick(55)],
        &["10000..35000 due 3"],
    );
    // Exactly the gap apart is apart.
    check(
        stamped(session(), 20),
        &[Stamp(10, 10), Stamp(20, 20), Tick(50)],
        &["10000..20000 due 1", "20000..30000 due 1"],
    );
    let aged = WindowSpec {
        max_age: Some(seconds(15)),
        ..session()
    };
    check(
        aged,
        &[Come(1), Come(9), Come(15), Come(17), Tick(27)],
        &["1000..16000 full 3", "17000..27000 due 1"],
    );
}

#[test]
fn counts_end_by_number_or_age() {
    let count = || WindowSpec::new(WindowKind::Count { messages: 2 });
    check(
        count(),
        &[Come(1), Come(5), Come(6), Close(9)],
        &["1000..5000 due 2", "6000..6000 reload 1"],
    );
    let aged = WindowSpec {
        max_age: Some(seconds(15)),
        ..count()
    };
    check(aged, &[Come(1), Tick(16)], &["1000..1000 full 1"]);
}

#[test]
fn silence_is_reported() {
    let empty = || WindowSpec {
        empty: true,
        ..tumbling(10)
    };
    check(
        empty(),
        &[Tick(5), Tick(10), Tick(20)],
        &["0..10000 due 0", "10000..20000 due 0"],
    );
    check(
        empty(),
        &[Come(5), Tick(55), Come(56), Tick(60)],
        &["0..10000 due 1", "40000..50000 due 0", "50000..60000 due 1"],
    );
    check(
        empty(),
        &[Alarm(5), Tick(10)],
        &["0..5001 early 1", "5000..10000 due 0"],
    );
    check(
        empty(),
        &[Of("a", 5), Of("b", 15), Tick(20)],
        &["a 0..10000 due 1", "a 10000..20000 due 0", "b 10000..20000 due 1"],
    );
    let absence = WindowSpec {
        absence: Some(seconds(30)),
        ..tumbling(60)
    };
    check(
        absence,
        &[Tick(5), Tick(35), Tick(99), Come(100), Tick(200)],
        &[
            "5000..35000 absence 0",
            "60000..120000 due 1",
            "100000..130000 absence 0",
        ],
    );
}

#[test]
fn groups_have_a_limit() {
    let two = || WindowSpec {
        max_groups: 2,
        ..tumbling(10)
    };
    check(
        two(),
        &[Of("a", 1), Of("b", 2), Of("c", 3), Of("d", 4), Tick(10)],
        &["a 0..10000 due 1", "b 0..10000 due 1", "other 0..10000 due 2"],
    );
    let mut windows = WindowOperator::new(two(), 0, 3, true);
    for (seq, group) in (1..).zip(["b", "a"]) {
        windows.ingest(&WindowMessage {
            group: group.to_owned(),
            ..message(seq, at(seq))
        });
    }
    let third = windows.ingest(&WindowMessage {
        group: String::from("c"),
        ..message(3, at(12))
    });
    assert_eq!(
        (third.assigned, third.overflow, third.evicted),
        (true, false, vec![String::from("b")])
    );
    assert_eq!(windows.checkpoints().count(), 2);
}

#[test]
fn a_clock_set_back_ends_what_is_to_come() {
    check(
        tumbling(10),
        &[Come(25), Back(12), Come(13), Tick(20)],
        &["20000..25000 clock 1", "10000..20000 due 1"],
    );
    // The window of 12 was closed up to 20; it goes on from 12.
    check(
        tumbling(10),
        &[Come(11), Tick(20), Back(12), Come(13), Tick(20)],
        &["10000..20000 due 1", "12000..20000 due 1"],
    );
    let cooled = WindowSpec {
        cool_down: seconds(100),
        ..tumbling(60)
    };
    check(
        cooled,
        &[Alarm(30), Back(20), Alarm(21)],
        &["0..30001 early 1", "20000..21001 early 1"],
    );
}

#[test]
fn facts_are_those_of_the_messages() {
    let mut windows = WindowOperator::new(stamped(tumbling(60), 0), 2, 2, false);
    let values = [(3, 2.5), (1, 1.0), (9, 7.0)];
    for (seq, (second, x)) in (1..).zip(values) {
        let values = vec![(0, Value::Number(x)), (1, Value::Text(format!("t{}", seq % 2)))];
        windows.ingest(&WindowMessage {
            event_time: Some(at(second)),
            values,
            ..message(seq, at(10))
        });
    }
    // More different texts than are counted.
    for n in 0..100 {
        let values = vec![(1, Value::Text(format!("n{n:03}")))];
        windows.ingest(&WindowMessage {
            event_time: Some(at(5)),
            values,
            ..message(10 + n, at(10))
        });
    }
    let closed = windows.tick(at(60)).remove(0);
    let [number, text] = closed.facts.as_slice() else {
        panic!("two fields")
    };
    assert_eq!(
        (number.count, number.min, number.max, number.mean),
        (3, Some(1.0), Some(7.0), Some(3.5))
    );
    assert_eq!(
        (number.first.clone(), number.last.clone()),
        (Some(Value::Number(1.0)), Some(Value::Number(7.0)))
    );
    assert_eq!(
        (number.rate, number.from, number.to),
        (Some(0.75), Some(at(1)), Some(at(9)))
    );
    assert_eq!(text.count, 103);
    assert_eq!(text.values.len(), 10);
    assert_eq!(
        text.values[..2],
        [(String::from("t1"), 2), (String::from("n000"), 1)]
    );
    assert_eq!(closed.seqs, [109, 3], "the newest by time");
    assert_eq!(closed.forget, [1..=109]);
}
