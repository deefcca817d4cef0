//! The memory of open windows grows with their messages, not with the number of windows in which these count.

#![allow(clippy::unwrap_used, reason = "test code")]

use std::time::Duration;

use phi_edge_rules::{Time, TimeSource, Value, WindowKind, WindowMessage, WindowOperator, WindowSpec};

const SECOND: i64 = 1000;
/// Bytes of a message of 300 bytes in the store.
const MESSAGE_BYTES: u64 = 428;
const MESSAGES: u64 = 25_000;

fn hopping() -> WindowSpec {
    WindowSpec::new(WindowKind::Hopping {
        every: Duration::from_secs(1),
        length: Duration::from_secs(1000),
    })
}

/// A message of two text fields.
fn message(seq: u64, at: i64, group: u64, text: impl Fn(u64) -> String) -> WindowMessage {
    WindowMessage {
        seq,
        arrived: Time(at),
        event_time: None,
        group: format!("g{group}"),
        bytes: 300,
        early: false,
        values: (0..2)
            .map(|field| {
                (
                    usize::try_from(field).unwrap(),
                    Value::Text(text(seq * 2 + field)),
                )
            })
            .collect(),
    }
}

/// Bytes of this process in memory.
#[allow(clippy::disallowed_methods, reason = "the test measures its own process")]
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib: Option<u64> = line.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse().ok());
    kib.unwrap_or(0) * 1024
}

/// Bytes of 25,000 messages in 10 groups, by the operator and by the growth of the process.
fn cost(text: impl Fn(u64) -> String) -> (u64, u64) {
    let before = resident();
    let mut windows = WindowOperator::new(hopping(), 2, 2000, true);
    for seq in 0..MESSAGES {
        let at = i64::try_from(seq).unwrap() * 10;
        windows.ingest(&message(seq + 1, at, seq % 10, &text));
    }
    (windows.held_bytes(), resident().saturating_sub(before))
}

/// One test, since others in this process would count.
#[test]
fn texts_of_hopping_windows_are_held_once() {
    // 64 texts of 256 bytes in each of 10 groups, all through a thousand windows: 7.5 MB of messages.
    let (held, grown) = cost(|n| format!("{:0>256}", n % 64));
    assert!(held <= MESSAGES * MESSAGE_BYTES, "{held} bytes are held");
    assert!(grown < 24 << 20, "the process has grown by {grown} bytes");
    // Texts that are all different cost what their messages do.
    let (held, grown) = cost(|n| format!("{n:0>128}"));
    assert!(held <= MESSAGES * MESSAGE_BYTES * 2, "{held} bytes are held");
    assert!(grown < 48 << 20, "the process has grown by {grown} bytes");
    a_message_in_each_of_many_groups_opens_no_thousand_windows();
    what_is_held_is_the_same_after_a_restart_and_nothing_once_all_has_ended();
    periods_that_go_on_are_bounded();
}

fn a_message_in_each_of_many_groups_opens_no_thousand_windows() {
    let spec = WindowSpec {
        max_groups: 10_000,
        ..hopping()
    };
    let mut windows = WindowOperator::new(spec, 2, 2000, true);
    for seq in 0..10_000 {
        windows.ingest(&message(seq + 1, 0, seq, |_| "on".to_owned()));
    }
    let held = windows.held_bytes();
    assert!(held <= 10_000 * MESSAGE_BYTES * 3, "{held} bytes are held");
}

fn what_is_held_is_the_same_after_a_restart_and_nothing_once_all_has_ended() {
    let stored: Vec<WindowMessage> = (0..5_000)
        .map(|seq| {
            message(seq + 1, i64::try_from(seq).unwrap() * 40, seq % 3, |n| {
                format!("t{}", n % 500)
            })
        })
        .collect();
    let mut windows = WindowOperator::new(hopping(), 2, 2000, true);
    let mut closed = Vec::new();
    for message in &stored {
        closed.extend(windows.ingest(message).closed);
    }
    assert!(closed.is_empty() || closed.iter().all(|window| window.forget.is_empty()));
    let mut again = WindowOperator::new(hopping(), 2, 2000, true);
    for (group, checkpoint) in windows.checkpoints() {
        again.restore(group, checkpoint);
    }
    for message in &stored {
        again.ingest(message);
    }
    assert_eq!(again.held_bytes(), windows.held_bytes());
    let end = Time(5_000 * 40 + 2_000 * SECOND);
    assert_eq!(again.tick(end), windows.tick(end));
    // A new window is all there is.
    windows.ingest(&message(9_000, end.0, 1, |_| "x".to_owned()));
    assert!(windows.held_bytes() < 200_000, "{}", windows.held_bytes());
}

/// A message of any period within the lateness may close a part of it early.
fn periods_that_go_on_are_bounded() {
    let spec = WindowSpec {
        time: TimeSource::Field {
            pointer: "/t".to_owned(),
            lateness: Duration::from_hours(24),
        },
        ..WindowSpec::new(WindowKind::Tumbling {
            every: Duration::from_secs(1),
        })
    };
    let mut windows = WindowOperator::new(spec, 2, 2000, true);
    let now = 90_000 * SECOND;
    for seq in 0..5_000 {
        let stamped = WindowMessage {
            event_time: Some(Time(now - i64::try_from(seq).unwrap() * SECOND)),
            early: true,
            ..message(seq + 1, now, 0, |_| "on".to_owned())
        };
        windows.ingest(&stamped);
        assert!(windows.checkpoint("g0").unwrap().remainders.len() <= 1000);
    }
}
