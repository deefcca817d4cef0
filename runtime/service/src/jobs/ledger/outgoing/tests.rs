//! Events and refusals that wait: what is kept of them.

use std::sync::Arc;

use tokio::time::Instant;

use crate::jobs::ledger::*;
use phi_edge_api::{ReplyAddress, ReplyBody};
use phi_edge_rules::{CloseReason, Event, EventWindow, Output, Published, Time};

const START: Time = Time(1_700_000_000_000);

fn ledger(event_bytes: u64) -> Ledger {
    let limits = Limits {
        slots: 1,
        context: 64,
        memory: usize::MAX,
        queue: 8,
        max_deadline: Duration::from_mins(1),
        keep_for: Duration::from_mins(1),
        keep_outcomes: 8,
        keep_bytes: 1 << 20,
        event_bytes,
        session_ttl: Duration::from_mins(1),
        session_memory: 1 << 20,
        quota: Quota::default(),
        model: "m".into(),
        observers: Observers::default(),
    };
    Ledger::new(limits, 7, Journal::new(None))
}

fn after(ms: u64) -> Time {
    START.after(Duration::from_millis(ms))
}

fn publish(ledger: &mut Ledger, id: u64, output: Output, at: Time) {
    let event = Event {
        event_id: id.to_string(),
        rule: "r".into(),
        group: String::new(),
        window: EventWindow {
            start: START,
            end: START,
            reason: CloseReason::Due,
            messages: 1,
            late: 0,
            left_out: 0,
            dropped: 0,
            closed_late: false,
        },
        stats: Vec::new(),
        text: None,
        unsupported_numbers: None,
        data: None,
        error: None,
        finish_reason: None,
        prompt_tokens: 0,
        completion_tokens: 0,
        cached_tokens: 0,
        model: Arc::from(""),
    };
    let event_id = id.to_string();
    ledger.publish_event(
        Published { event, output },
        RuleChange::RemovePendingEvent { event_id },
        &[],
        at,
    );
}

fn output(topic: &str) -> Output {
    Output {
        topic: topic.to_owned(),
        qos: 1,
        expiry: None,
        retain: false,
    }
}

fn refuse(ledger: &mut Ledger, id: &str) {
    let key = JobKey {
        client: None,
        id: id.to_owned(),
    };
    let refusal = ledger.refuse(phi_edge_job::ErrorCode::Busy, "busy");
    ledger.post(key, ReplyAddress::nowhere(), ReplyBody::Error(refusal), None);
}

/// What leaves, by its ids.
fn leaving(ledger: &mut Ledger, at: Time) -> Vec<String> {
    std::iter::from_fn(|| ledger.take_outgoing(at))
        .map(|reply| reply.key.id)
        .collect()
}

#[test]
fn the_oldest_events_make_room_and_replies_stay() {
    let mut ledger = ledger(10 * 1100);
    refuse(&mut ledger, "a");
    for id in 0..1000 {
        publish(&mut ledger, id, output("t"), after(id));
        assert!(ledger.event_bytes() <= 10 * 1100);
    }
    refuse(&mut ledger, "b");
    // Neither events nor refusals hold back the requests of others: they have bounds of their own.
    assert_eq!(ledger.unsent_outcomes(), 0);
    let left = leaving(&mut ledger, after(1000));
    let (refusals, events): (Vec<String>, Vec<String>) =
        left.into_iter().partition(|id| id == "a" || id == "b");
    assert_eq!(refusals, ["a", "b"]);
    let events = {
        let newest: Vec<String> = (1000 - events.len() as u64..1000)
            .map(|id| id.to_string())
            .collect();
        assert_eq!(events, newest);
        events.len()
    };
    assert_eq!(ledger.event_counters().dropped, 1000 - events as u64);
    assert_eq!((ledger.event_bytes(), ledger.unsent_outcomes()), (0, 0));
}

#[test]
fn an_expiry_counts_while_the_event_waits() {
    let mut ledger = ledger(1 << 20);
    for (id, seconds) in [(0, 10), (1, 60)] {
        let expiry = Some(Duration::from_secs(seconds));
        publish(
            &mut ledger,
            id,
            Output {
                expiry,
                ..output("t")
            },
            START,
        );
    }
    publish(&mut ledger, 2, output("t"), START);
    ledger.sweep_events(after(9_999));
    assert_eq!(ledger.event_counters().expired, 0);
    ledger.sweep_events(after(10_000));
    assert_eq!(ledger.event_counters().expired, 1);
    let first = ledger.take_outgoing(after(20_000)).unwrap();
    let ReplyBody::Event(published) = first.body else {
        panic!("no event")
    };
    assert_eq!(published.event.event_id, "1");
    assert_eq!(published.output.expiry, Some(Duration::from_secs(40)));
    assert_eq!(leaving(&mut ledger, after(20_000)), ["2"]);
}

#[test]
fn of_retained_events_that_have_waited_only_the_newest_of_a_topic_stays() {
    let mut ledger = ledger(1 << 20);
    let retained = |topic| Output {
        retain: true,
        ..output(topic)
    };
    for id in 0..100 {
        publish(
            &mut ledger,
            id,
            retained(if id % 2 == 0 { "even" } else { "odd" }),
            after(id),
        );
    }
    publish(&mut ledger, 100, output("even"), after(100));
    // While there is a connection they are on their way: a subscriber is to see each.
    ledger.sweep_events(after(60_000));
    assert_eq!(ledger.event_counters().superseded, 0);
    ledger.set_connected(false, after(60_000));
    ledger.set_connected(false, after(63_000));
    ledger.sweep_events(after(64_000));
    assert_eq!(ledger.event_counters().superseded, 0, "it may come back at once");
    ledger.sweep_events(after(66_000));
    assert_eq!(ledger.event_counters().superseded, 98);
    assert_eq!(leaving(&mut ledger, after(66_000)), ["98", "99", "100"]);
}

#[test]
fn outcomes_wait_for_neither_refusals_nor_events_of_others() {
    let mut ledger = ledger(1 << 20);
    for id in 0..100 {
        refuse(&mut ledger, &format!("refused-{id}"));
        publish(&mut ledger, id, output("t"), after(id));
    }
    for id in ["first", "second"] {
        let key = JobKey {
            client: None,
            id: id.to_owned(),
        };
        let refusal = ledger.refuse(phi_edge_job::ErrorCode::Internal, "failed");
        ledger.send(key, ReplyAddress::nowhere(), ReplyBody::Error(refusal));
    }
    let left = leaving(&mut ledger, after(1000));
    assert_eq!(left[..4], ["first", "0", "second", "refused-0"]);
    assert_eq!(left.len(), 202);
    // The others by turns, each class in its order.
    let events: Vec<&String> = left.iter().filter(|id| id.parse::<u64>().is_ok()).collect();
    assert!(events.is_sorted_by_key(|id| id.parse::<u64>().unwrap_or_default()));
    assert!(left[..10].iter().filter(|id| id.starts_with("refused")).count() >= 3);
}

#[test]
fn what_has_expired_on_its_way_is_counted() {
    let mut ledger = ledger(1 << 20);
    ledger.event_expired(None);
    assert_eq!(ledger.event_counters().expired, 1);
    assert!(ledger.start_next(Instant::now()).is_none());
}

#[test]
fn refusals_that_the_broker_does_not_take_are_bounded_in_bytes() {
    let mut ledger = ledger(1 << 20);
    let address = ReplyAddress {
        correlation: Some(vec![0; 1 << 20]),
        ..ReplyAddress::nowhere()
    };
    for id in 0..100 {
        let key = JobKey {
            client: None,
            id: id.to_string(),
        };
        let refusal = ledger.refuse(phi_edge_job::ErrorCode::Busy, "busy");
        ledger.post(key, address.clone(), ReplyBody::Error(refusal), None);
    }
    assert_eq!(ledger.stats().replies_dropped, 93);
    assert_eq!(leaving(&mut ledger, START).len(), 7);
    refuse(&mut ledger, "next");
    assert_eq!(leaving(&mut ledger, START), ["next"]);
}
