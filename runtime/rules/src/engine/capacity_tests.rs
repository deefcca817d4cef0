//! The limits of rules, and what is dropped beyond them.

use serde_json::json;

use super::tests::{START, after, facts, rule, rule_engine, say};
use super::*;
use crate::{Field, Value, WindowKind};
use phi_edge_job::ErrorCode;

fn hopping() -> WindowKind {
    WindowKind::Hopping {
        every: Duration::from_secs(1),
        length: Duration::from_secs(100),
    }
}

#[test]
fn what_windows_hold_in_memory_is_held_to_the_rules_limit() {
    const LIMIT: u64 = 256 << 10;
    let mut wide = rule();
    wide.summary.prompt = crate::PromptSource::None;
    wide.window.kind = hopping();
    wide.window.max_groups = 100_000;
    wide.limits.store_bytes = LIMIT;
    wide.fields = (0..16)
        .map(|n| Field {
            name: format!("f{n}"),
            pointer: "/t".to_owned(),
        })
        .collect();
    let mut engine = rule_engine(wide, QueueCapacity::DEFAULT);
    for n in 0..1000 {
        say(
            &mut engine,
            &format!("{n}"),
            &json!({"t": format!("text {n}")}),
            after(0),
        );
        let counters = engine.counters();
        assert!(counters.window_bytes <= LIMIT + 4096, "{counters:?}");
        assert!(counters.held_bytes <= LIMIT, "{counters:?}");
    }
    let counters = engine.counters();
    assert!(counters.dropped > 0 && counters.messages > 50, "{counters:?}");
    // A restored engine holds the same.
    let mut again = super::tests::rule_engine((*engine.rules["r"].rule).clone(), QueueCapacity::DEFAULT);
    again.restore(engine.all(), after(0));
    assert_eq!(again.counters().window_bytes, counters.window_bytes);
    assert_eq!(again.counters().held, counters.held);
    // Closed windows and their texts make room.
    engine.tick(after(200));
    say(&mut engine, "a", &json!({"t": "text"}), after(201));
    assert_eq!(engine.counters().dropped, counters.dropped);
    assert_eq!(engine.counters().held, 1);
}

#[test]
fn the_limit_of_all_rules_holds_for_what_windows_hold_in_memory() {
    const LIMIT: u64 = 128 << 10;
    let mut engine = RuleEngine::new(7, LIMIT, QueueCapacity::DEFAULT);
    let rules = ["r", "s"].map(|name| {
        let mut rule = rule();
        rule.name = name.to_owned();
        rule.window.kind = hopping();
        rule.window.max_groups = 100_000;
        rule
    });
    engine.set_rules(rules.into(), START).unwrap();
    for n in 0..2000 {
        let message = RuleMessage {
            topic: format!("plant/{n}"),
            payload: b"{\"t\":1}".to_vec(),
            rules: vec!["r".into(), "s".into()],
            receipt: None,
            redelivered: false,
        };
        engine.ingest(&message, START);
        assert!(engine.counters().window_bytes <= LIMIT + 4096);
    }
    assert!(engine.counters().dropped > 0);
}

#[test]
fn of_more_events_behind_their_group_than_there_is_room_for_the_oldest_go_out_of_order() {
    let room = QueueCapacity {
        events: 1,
        followers: 2,
        ..QueueCapacity::UNBOUNDED
    };
    let mut engine = rule_engine(rule(), room);
    say(&mut engine, "a", &json!({"t": 1}), after(0));
    let _at_work = engine.take_pending_summary().unwrap();
    for t in 2..=6 {
        say(&mut engine, "a", &json!({"t": t}), after(t));
    }
    // 6 waits for a summary, 4 and 5 for the first of their group.
    let busy = Some(ErrorCode::Busy);
    assert_eq!(
        facts(&mut engine),
        [(Some(Value::Number(2.0)), busy), (Some(Value::Number(3.0)), busy)]
    );
    assert_eq!(engine.counters().waiting, 4);
}

#[test]
fn many_windows_that_end_at_once_show_the_model_no_more_than_may_wait() {
    const CAPACITY: u64 = 20_000;
    let mut many = rule();
    many.window.kind = hopping();
    let room = QueueCapacity {
        bytes: CAPACITY,
        ..QueueCapacity::DEFAULT
    };
    let mut engine = rule_engine(many, room);
    for t in 0..5 {
        say(
            &mut engine,
            "a",
            &json!({"t": t, "x": "x".repeat(1000)}),
            after(t),
        );
    }
    let changes = engine.tick(after(1000));
    let events: Vec<&PendingEvent> = changes
        .iter()
        .filter_map(|change| match change {
            RuleChange::CloseWindow(ended) => ended.pending.as_ref(),
            _ => None,
        })
        .collect();
    assert_eq!(events.len(), 100);
    let shown = events.iter().flat_map(|event| &event.messages);
    assert!(shown.map(|message| message.payload.len() as u64).sum::<u64>() <= CAPACITY + 6_000);
    let without = events.iter().filter(|event| event.event.error.is_some());
    assert!(without.count() > 90);
}
