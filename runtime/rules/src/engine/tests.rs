use serde_json::json;

use super::*;
use crate::changes::RestoredRules;
use crate::{
    Checkpoint, Field, PayloadFormat, PromptSource, Selector, TimeSource, Value, WindowKind, WindowSpec,
};
use phi_edge_job::ErrorCode;

pub(super) const START: Time = Time(1_700_000_000_000);

/// Windows of one message, with a summary within a minute, by the first level of the topic below `plant`.
pub(super) fn rule() -> Rule {
    let prompt = PromptSource::Text("{% include \"facts\" %}".to_owned());
    let mut rule = Rule::new("r", "plant/#", WindowKind::Count { messages: 1 }, prompt);
    rule.fields = vec![Field {
        name: "t".to_owned(),
        pointer: "/t".to_owned(),
    }];
    rule.group_by = Some(Selector::Topic(1));
    rule.summary.deadline = Duration::from_mins(1);
    rule.limits.store_bytes = 1 << 20;
    rule
}

pub(super) fn rule_engine(rule: Rule, room: QueueCapacity) -> RuleEngine {
    let mut engine = RuleEngine::new(7, u64::MAX, room);
    engine.set_rules(vec![rule], START).unwrap();
    engine
}

pub(super) fn after(seconds: u64) -> Time {
    START.after(Duration::from_secs(seconds))
}

pub(super) fn say(
    engine: &mut RuleEngine,
    topic: &str,
    payload: &serde_json::Value,
    at: Time,
) -> Vec<RuleChange> {
    let message = RuleMessage {
        topic: format!("plant/{topic}"),
        payload: payload.to_string().into_bytes(),
        rules: vec!["r".into()],
        receipt: None,
        redelivered: false,
    };
    engine.ingest(&message, at)
}

/// The events that are published with facts only now: the last value of `t`, and the error.
pub(super) fn facts(engine: &mut RuleEngine) -> Vec<(Option<Value>, Option<ErrorCode>)> {
    std::iter::from_fn(|| {
        let pending = engine.take_facts_only()?;
        engine.complete_event(&pending.event);
        let error = pending.event.error.map(|error| error.code);
        Some((pending.event.stats[0].1.last.clone(), error))
    })
    .collect()
}

#[test]
fn an_event_waits_for_a_summary_no_longer_than_its_deadline() {
    let mut engine = rule_engine(rule(), QueueCapacity::DEFAULT);
    say(&mut engine, "a", &json!({"t": 1}), after(0));
    say(&mut engine, "b", &json!({"t": 2}), after(40));
    engine.tick(after(59));
    assert_eq!(facts(&mut engine), []);
    engine.tick(after(70));
    assert_eq!(
        facts(&mut engine),
        [(Some(Value::Number(1.0)), Some(ErrorCode::Busy))]
    );
    let pending_summary = engine.take_pending_summary().unwrap();
    assert_eq!(
        (pending_summary.pending.event.group.as_str(), pending_summary.left),
        ("b", Duration::from_secs(30))
    );
}

#[test]
fn of_more_events_than_there_is_room_for_the_oldest_go_without_a_summary() {
    for room in [
        QueueCapacity {
            events: 2,
            ..QueueCapacity::UNBOUNDED
        },
        QueueCapacity {
            bytes: 2500,
            ..QueueCapacity::UNBOUNDED
        },
    ] {
        let mut engine = rule_engine(rule(), room);
        for t in 1..=3 {
            say(&mut engine, &format!("{t}"), &json!({"t": t}), after(t));
        }
        assert_eq!(
            facts(&mut engine),
            [(Some(Value::Number(1.0)), Some(ErrorCode::Busy))]
        );
        assert_eq!(engine.take_pending_summary().unwrap().pending.event.group, "2");
        assert_eq!(engine.take_pending_summary().unwrap().pending.event.group, "3");
        assert!(engine.take_pending_summary().is_none());
    }
}

#[test]
fn an_event_without_a_summary_waits_for_those_of_its_group_before() {
    let room = QueueCapacity {
        events: 1,
        ..QueueCapacity::UNBOUNDED
    };
    let mut engine = rule_engine(rule(), room);
    say(&mut engine, "a", &json!({"t": 1}), after(0));
    let first = engine.take_pending_summary().unwrap().pending.event;
    say(&mut engine, "a", &json!({"t": 2}), after(1));
    say(&mut engine, "a", &json!({"t": 3}), after(2));
    assert_eq!(facts(&mut engine), []);
    assert!(engine.take_pending_summary().is_none());
    engine.complete_event(&first);
    assert_eq!(
        facts(&mut engine),
        [(Some(Value::Number(2.0)), Some(ErrorCode::Busy))]
    );
    assert!(engine.take_pending_summary().is_some());
}

#[test]
fn facts_alone_wait_for_no_model() {
    let mut alone = rule();
    alone.summary.prompt = PromptSource::None;
    let mut engine = rule_engine(alone, QueueCapacity::DEFAULT);
    say(&mut engine, "a", &json!({"t": 1}), after(0));
    assert!(engine.take_pending_summary().is_none());
    assert_eq!(facts(&mut engine), [(Some(Value::Number(1.0)), None)]);
}

/// How many of these messages count, one after the other.
fn counted(rule: Rule, messages: &[serde_json::Value]) -> u64 {
    let mut engine = rule_engine(rule, QueueCapacity::UNBOUNDED);
    for message in messages {
        say(&mut engine, "a", message, after(1));
    }
    engine.counters().messages
}

#[test]
fn what_differs_is_no_repeat() {
    let mut once = rule();
    once.dedupe = Some(Selector::Field("/n".to_owned()));
    let long = "x".repeat(300);
    for [one, other] in [
        [json!(9_007_199_254_740_992_u64), json!(9_007_199_254_740_993_u64)],
        [json!(u64::MAX), json!(u64::MAX - 1)],
        [json!(format!("{long}1")), json!(format!("{long}2"))],
        [json!([long, 1]), json!([long, 2])],
    ] {
        let messages = [&one, &other, &one, &other].map(|n| json!({"n": n}));
        assert_eq!(counted(once.clone(), &messages), 2, "{one} {other}");
    }
    let mut bare = once;
    bare.payload = PayloadFormat::Number;
    bare.dedupe = Some(Selector::Field(String::new()));
    let messages = [json!(9_007_199_254_740_992_u64), json!(9_007_199_254_740_993_u64)];
    assert_eq!(counted(bare, &messages), 2);
}

#[test]
fn long_numbers_are_groups_of_their_own() {
    let mut grouped = rule();
    grouped.group_by = Some(Selector::Field("/id".to_owned()));
    let mut engine = rule_engine(grouped, QueueCapacity::UNBOUNDED);
    for id in [json!(9_007_199_254_740_993_u64), json!(1.0)] {
        say(&mut engine, "a", &json!({"id": id}), after(0));
    }
    let groups = [(); 2].map(|()| engine.take_pending_summary().unwrap().pending.event.group);
    assert_eq!(groups, ["9007199254740993", "1"]);
}

#[test]
fn what_was_dropped_may_come_again() {
    let mut once = rule();
    once.dedupe = Some(Selector::Field("/n".to_owned()));
    once.window.kind = WindowKind::Tumbling {
        every: Duration::from_mins(10),
    };
    once.limits.store_bytes = 250;
    let mut engine = rule_engine(once, QueueCapacity::UNBOUNDED);
    say(&mut engine, "a", &json!({"n": 1}), after(0));
    say(&mut engine, "a", &json!({"n": 2}), after(1));
    say(&mut engine, "a", &json!({"n": 1}), after(2));
    let counters = engine.counters();
    assert_eq!(
        (counters.messages, counters.dropped, counters.repeated),
        (1, 1, 1)
    );
    let changes = say(&mut engine, "a", &json!({"n": 2}), after(600));
    assert_eq!(engine.counters().messages, 2);
    assert!(
        changes
            .iter()
            .any(|change| matches!(change, RuleChange::AddDedupeValue { .. }))
    );
}

fn leaves(changes: &[RuleChange]) -> Vec<&str> {
    changes
        .iter()
        .filter_map(|change| match change {
            RuleChange::RemoveRule { rule } => Some(rule.as_str()),
            _ => None,
        })
        .collect()
}

#[test]
fn a_rule_that_is_gone_leaves_nothing_behind() {
    let mut watched = rule();
    watched.window.absence = Some(Duration::from_mins(1));
    let mut engine = rule_engine(watched.clone(), QueueCapacity::UNBOUNDED);
    say(&mut engine, "a", &json!({}), after(0));
    let mut changed = watched.clone();
    changed.summary.max_tokens += 1;
    let changes = engine.set_rules(vec![changed], after(1)).unwrap();
    assert_eq!(leaves(&changes), [""; 0], "it goes on with another summary");
    let mut other = watched.clone();
    other.window.kind = WindowKind::Count { messages: 2 };
    say(&mut engine, "b", &json!({}), after(1));
    let changes = engine.set_rules(vec![other], after(2)).unwrap();
    assert_eq!(leaves(&changes), ["r"]);
    assert!(engine.all().checkpoints.is_empty());
    let changes = engine.set_rules(Vec::new(), after(2)).unwrap();
    assert_eq!(leaves(&changes), ["r"]);
}

#[test]
fn what_is_left_of_unknown_rules_is_forgotten() {
    let mut engine = rule_engine(rule(), QueueCapacity::UNBOUNDED);
    let restored = RestoredRules {
        checkpoints: vec![
            ("r".to_owned(), "a".to_owned(), Checkpoint::default()),
            ("gone".to_owned(), "a".to_owned(), Checkpoint::default()),
        ],
        dedupe_values: vec![("away".to_owned(), "x".to_owned(), START)],
        ..RestoredRules::default()
    };
    let changes = engine.restore(restored, after(0));
    assert_eq!(leaves(&changes), ["away", "gone"]);
}

/// Windows of ten minutes and at most one message, with `absence`.
fn full(early: &str) -> Rule {
    let mut full = rule();
    full.window.kind = WindowKind::Tumbling {
        every: Duration::from_mins(10),
    };
    full.window.early = Some(early.to_owned());
    full.window.cool_down = Duration::from_secs(30);
    full.window.absence = Some(Duration::from_mins(1));
    full.limits.store_bytes = 250;
    full.summary.prompt = PromptSource::None;
    full
}

#[test]
fn a_full_store_hides_no_alarm() {
    let mut engine = rule_engine(full("t > 80"), QueueCapacity::UNBOUNDED);
    for (t, at) in [(20, 0), (21, 1), (90, 2), (30, 3), (91, 4)] {
        say(&mut engine, "a", &json!({"t": t}), after(at));
    }
    let event = engine.take_facts_only().unwrap().event;
    let window = &event.window;
    assert_eq!(
        (window.reason, window.messages, window.dropped),
        (CloseReason::Early, 2, 1)
    );
    assert_eq!(event.stats[0].1.max, Some(90.0));
    // There is room again for one; within `cool_down` an alarm is dropped as others are.
    let counters = engine.counters();
    assert_eq!((counters.held, counters.dropped), (1, 2));
    assert!(engine.take_facts_only().is_none());
}

#[test]
fn an_alarm_is_told_while_nothing_can_be_stored() {
    let mut engine = rule_engine(full("t > 80"), QueueCapacity::UNBOUNDED);
    for (t, at) in [(20, 0), (90, 1)] {
        let message = RuleMessage {
            topic: "plant/a".to_owned(),
            payload: json!({"t": t}).to_string().into_bytes(),
            rules: vec!["r".into()],
            receipt: None,
            redelivered: false,
        };
        engine.ingest_unstorable(&message, after(at));
    }
    let window = engine.take_facts_only().unwrap().event.window;
    assert_eq!(
        (window.reason, window.messages, window.dropped),
        (CloseReason::Early, 1, 1)
    );
    assert_eq!(engine.counters().held, 0);
}

#[test]
fn a_dropped_message_is_no_absence() {
    let mut engine = rule_engine(full("false"), QueueCapacity::UNBOUNDED);
    say(&mut engine, "a", &json!({"t": 1}), after(0));
    let changes = say(&mut engine, "a", &json!({"t": 2}), after(50));
    let checkpoints = changes.iter().filter_map(|change| match change {
        RuleChange::SaveCheckpoint { checkpoint, .. } => checkpoint.last_seen,
        _ => None,
    });
    assert_eq!(
        checkpoints.collect::<Vec<_>>(),
        [after(50)],
        "over a restart, too"
    );
    engine.tick(after(100));
    assert!(engine.take_facts_only().is_none());
    engine.tick(after(110));
    assert_eq!(
        engine.take_facts_only().unwrap().event.window.reason,
        CloseReason::Absence
    );
}

#[test]
fn what_is_due_makes_room_for_the_next() {
    let mut engine = rule_engine(full("false"), QueueCapacity::UNBOUNDED);
    say(&mut engine, "a", &json!({"t": 1}), after(0));
    say(&mut engine, "a", &json!({"t": 2}), after(600));
    let counters = engine.counters();
    assert_eq!((counters.messages, counters.dropped), (2, 0));
}

#[test]
fn the_newest_message_is_shown_whatever_its_size() {
    let mut small = rule();
    small.window.kind = WindowKind::Count { messages: 2 };
    small.limits.keep_bytes = 8;
    let mut engine = rule_engine(small, QueueCapacity::UNBOUNDED);
    for t in [1, 2] {
        say(&mut engine, "a", &json!({"t": t, "name": "long"}), after(t));
    }
    let pending = engine.take_pending_summary().unwrap().pending;
    assert_eq!(pending.messages.len(), 1);
    assert_eq!(pending.messages[0].time, after(2));
    assert_eq!(pending.event.window.left_out, 1);
}

#[test]
fn the_model_is_needed_for_silence_too() {
    let mut watched = rule();
    watched.window.absence = Some(Duration::from_mins(1));
    let mut engine = rule_engine(watched, QueueCapacity::UNBOUNDED);
    say(&mut engine, "a", &json!({}), after(0));
    assert_eq!(engine.summary_due(), Some(after(60)));
}

/// The reason of the first event at that time, and whether it closed late.
fn closed_late(
    window: impl FnOnce(&mut WindowSpec),
    messages: &[serde_json::Value],
    told: u64,
) -> (CloseReason, bool) {
    let mut rule = rule();
    window(&mut rule.window);
    let mut engine = rule_engine(rule, QueueCapacity::UNBOUNDED);
    for (message, at) in messages.iter().zip(0..) {
        say(&mut engine, "a", message, after(at));
    }
    engine.tick(after(told));
    let window = engine.take_pending_summary().unwrap().pending.event.window;
    (window.reason, window.closed_late)
}

#[test]
fn what_ended_while_nobody_watched_is_told_late() {
    let session = |spec: &mut WindowSpec| {
        spec.kind = WindowKind::Session {
            gap: Duration::from_hours(2),
        };
        spec.max_age = Some(Duration::from_mins(1));
    };
    let silent = |spec: &mut WindowSpec| {
        spec.kind = WindowKind::Count { messages: 9 };
        spec.absence = Some(Duration::from_mins(1));
    };
    for (told, late) in [(61, false), (90, true)] {
        assert_eq!(
            closed_late(session, &[json!({})], told),
            (CloseReason::Full, late)
        );
        assert_eq!(
            closed_late(silent, &[json!({})], told),
            (CloseReason::Absence, late)
        );
    }
    // However old its event time is: the number of messages closed the window, at the arrival.
    let stamped = |spec: &mut WindowSpec| {
        spec.time = TimeSource::Field {
            pointer: "/at".to_owned(),
            lateness: Duration::ZERO,
        };
    };
    let message = json!({"at": "2020-01-01T00:00:00Z"});
    assert_eq!(closed_late(stamped, &[message], 0), (CloseReason::Due, false));
}

#[test]
fn the_model_is_shown_the_time_that_counts() {
    let mut stamped = rule();
    stamped.window.time = TimeSource::Field {
        pointer: "/at".to_owned(),
        lateness: Duration::ZERO,
    };
    let mut engine = rule_engine(stamped, QueueCapacity::UNBOUNDED);
    for at in [after(9), after(3600)] {
        say(&mut engine, "a", &json!({"at": at.0}), after(10));
    }
    let shown = [(); 2].map(|()| {
        let pending_summary = engine.take_pending_summary().unwrap();
        engine.complete_event(&pending_summary.pending.event);
        pending_summary.pending.messages[0].time
    });
    assert_eq!(shown, [after(9), after(10)], "an hour ahead is not believed");
}

/// Windows of ten minutes by event time, with `absence`.
fn stamped() -> Rule {
    let mut stamped = rule();
    stamped.window.kind = WindowKind::Tumbling {
        every: Duration::from_mins(10),
    };
    stamped.window.time = TimeSource::Field {
        pointer: "/at".to_owned(),
        lateness: Duration::ZERO,
    };
    stamped.window.absence = Some(Duration::from_mins(2));
    stamped.summary.prompt = PromptSource::None;
    stamped
}

/// The engine of the next process.
fn restarted(engine: &RuleEngine, rule: Rule, at: Time) -> RuleEngine {
    let mut next = RuleEngine::new(8, u64::MAX, QueueCapacity::UNBOUNDED);
    next.set_rules(vec![rule], at).unwrap();
    next.restore(engine.all(), at);
    next
}

fn windows(engine: &mut RuleEngine) -> Vec<(CloseReason, u64, u64)> {
    std::iter::from_fn(|| {
        let event = engine.take_facts_only()?.event;
        engine.complete_event(&event);
        Some((event.window.reason, event.window.messages, event.window.late))
    })
    .collect()
}

#[test]
fn what_waits_at_the_broker_is_counted_where_it_belongs() {
    let mut first = rule_engine(stamped(), QueueCapacity::UNBOUNDED);
    let stamped_at = |seconds: u64| json!({"at": after(seconds).0});
    say(&mut first, "a", &stamped_at(1), after(1));
    // An hour of downtime; the broker has messages of that time.
    let mut engine = restarted(&first, stamped(), after(3600));
    assert_eq!(engine.due(), Some(after(3630)));
    for seconds in [2, 500, 3000] {
        say(&mut engine, "a", &stamped_at(seconds), after(3601));
    }
    assert_eq!(windows(&mut engine), []);
    // A crash meanwhile changes nothing.
    let mut engine = restarted(&engine, stamped(), after(3602));
    say(&mut engine, "a", &stamped_at(3001), after(3603));
    engine.tick(after(3604));
    assert_eq!(windows(&mut engine), []);
    assert_eq!(engine.due(), Some(after(3605)));
    engine.tick(after(3605));
    let mut ended = windows(&mut engine);
    ended.sort_by_key(|(_, messages, _)| *messages);
    assert_eq!(ended.iter().map(|(_, messages, _)| messages).sum::<u64>(), 5);
    assert!(
        ended
            .iter()
            .all(|(reason, _, late)| (*reason, *late) == (CloseReason::Due, 0)),
        "{ended:?}"
    );
    assert_eq!(engine.counters().held, 0);
}

#[test]
fn silence_after_a_restart_is_absence_a_little_later() {
    let mut arrivals = stamped();
    arrivals.window.time = TimeSource::Arrival;
    for (rule, at_once) in [
        (arrivals, vec![(CloseReason::Due, 1, 0)]),
        (stamped(), Vec::new()),
    ] {
        let mut first = rule_engine(rule.clone(), QueueCapacity::UNBOUNDED);
        say(&mut first, "a", &json!({"at": after(1).0}), after(1));
        let mut engine = restarted(&first, rule, after(3600));
        assert_eq!(
            windows(&mut engine),
            at_once,
            "windows of arrivals wait for nothing"
        );
        engine.tick(after(3629));
        assert_eq!(windows(&mut engine), []);
        engine.tick(after(3630));
        let later = windows(&mut engine);
        assert!(later.contains(&(CloseReason::Absence, 0, 0)), "{later:?}");
        assert_eq!(later.len() + at_once.len(), 2);
    }
}
