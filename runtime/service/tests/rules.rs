//! What becomes of messages that rules take: windows, words, facts without words, restarts.

#![allow(clippy::unwrap_used, reason = "a test's folders are there")]

mod support;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use phi_edge_engine::Finish;
use phi_edge_rules::{
    CloseReason, Event, Field, Output, PromptSource, Rule, RuleMessage, Selector, Value, WindowKind,
};
use phi_edge_service::{
    EngineCommand, ErrorCode, LastEnd, Purge, Receipt, ReplyBody, ServiceConfig, Store, StoreConfig, inspect,
    purge,
};
use support::{Bench, job, settle, summary};

/// Windows of three messages, whose payloads are the prompt.
fn rule(name: &str) -> Rule {
    let prompt = PromptSource::Text("{% for m in messages %}{{ m.fields.value }} {% endfor %}".to_owned());
    let mut rule = Rule::new(name, "plant/#", WindowKind::Count { messages: 3 }, prompt);
    rule.fields = vec![Field {
        name: "value".to_owned(),
        pointer: "/value".to_owned(),
    }];
    rule.summary.max_tokens = 16;
    rule.summary.check_numbers = true;
    rule.summary.deadline = Duration::from_mins(1);
    rule.summary.max_parts = 4;
    rule.limits.store_bytes = 1 << 20;
    rule
}

fn config(rules: Vec<Rule>) -> ServiceConfig {
    ServiceConfig {
        rules,
        ..ServiceConfig::default()
    }
}

fn bench(rules: Vec<Rule>) -> Bench {
    Bench::with(config(rules), 1, 64)
}

fn durable(rules: Vec<Rule>, folder: &Path) -> Bench {
    let store = Store::open(
        StoreConfig {
            folder: folder.to_owned(),
            max_bytes: 1 << 30,
            memory_fallback: false,
        },
        LastEnd::Innocent,
    )
    .unwrap();
    Bench::on(config(rules), 1, 64, Some(store))
}

/// A message of which no two are the same to a broker.
#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "small numbers, as the tests have them"
)]
fn message(value: f64) -> RuleMessage {
    let mut digest = [0; 32];
    digest[..8].copy_from_slice(&value.to_le_bytes());
    RuleMessage {
        topic: "plant/1".to_owned(),
        payload: format!("{{\"value\":{value},\"n\":\"{}\"}}", (value / 2.0).floor()).into_bytes(),
        rules: vec![Arc::from("r")],
        receipt: Some(Receipt {
            packet_id: value.abs() as u16 + 1,
            digest,
        }),
        redelivered: false,
    }
}

/// Takes messages in and waits until each is stored.
async fn observe(bench: &Bench, values: impl IntoIterator<Item = f64>) {
    for value in values {
        if let Some(mut observed) = bench.service.ingest(&message(value)) {
            observed.wait().await;
        }
    }
}

async fn event(bench: &mut Bench) -> (Event, Output) {
    match bench.body().await {
        ReplyBody::Event(published) => (published.event, published.output),
        other => panic!("not an event: {other:?}"),
    }
}

/// Answers the next prompt; gives it as text.
async fn answer(bench: &mut Bench, text: &str) -> String {
    let (request, sink) = bench.asked().await;
    sink.text(text);
    sink.finish(summary(Finish::Stop, 2));
    request
        .prompt
        .iter()
        .filter_map(|symbol| char::from_u32(symbol.token()?.0))
        .collect()
}

#[tokio::test]
async fn a_window_becomes_an_event() {
    let mut bench = bench(vec![rule("r")]);
    observe(&bench, [1.0, 4.0, 2.5]).await;
    assert_eq!(answer(&mut bench, "Up to 4, not 7.\u{1b}").await, "1 4 2.5");
    let (event, output) = event(&mut bench).await;
    assert_eq!(output.topic, "events/r");
    assert_eq!((event.rule.as_str(), event.group.as_str()), ("r", ""));
    assert_eq!(
        (event.window.messages, event.window.reason),
        (3, CloseReason::Due)
    );
    assert_eq!(
        event.text.as_deref(),
        Some("Up to 4, not 7."),
        "control characters are taken out"
    );
    assert_eq!(event.unsupported_numbers, Some(vec!["7".to_owned()]));
    let (name, facts) = &event.stats[0];
    assert_eq!(name, "value");
    assert_eq!(
        (facts.count, facts.min, facts.max, facts.mean),
        (3, Some(1.0), Some(4.0), Some(2.5))
    );
    assert_eq!(
        (&facts.first, &facts.last),
        (&Some(Value::Number(1.0)), &Some(Value::Number(2.5)))
    );
    assert_eq!(event.error, None);
    assert!(bench.is_silent().await, "the job of the summary has no reply");
    assert_eq!(bench.service.rule_counters().events, 1);
}

#[tokio::test]
async fn an_answer_may_repeat_limits_of_an_included_template() {
    let mut digest = rule("r");
    digest.summary.prompt =
        PromptSource::Text("{% if false %}{% include \"demo-digest\" %}{% endif %}?".to_owned());
    let mut bench = bench(vec![digest]);
    observe(&bench, [1.0, 4.0, 2.5]).await;
    answer(&mut bench, "Up to 4, below 75, not 76.").await;
    let (event, _) = event(&mut bench).await;
    assert_eq!(event.unsupported_numbers, Some(vec!["76".to_owned()]));
}

#[tokio::test]
async fn facts_alone_need_no_model_and_keep_nothing_for_it() {
    let mut alone = rule("r");
    alone.summary.prompt = PromptSource::None;
    alone.limits.keep_messages = 2;
    alone.output.topic = "events/{topic:1}".to_owned();
    let mut bench = bench(vec![alone]);
    observe(&bench, [1.0, 2.0, 3.0]).await;
    let (event, output) = event(&mut bench).await;
    assert_eq!((event.window.messages, event.window.left_out), (3, 0));
    assert_eq!((event.stats[0].1.count, event.text, event.error), (3, None, None));
    assert_eq!(output.topic, "events/1");
    assert!(bench.commands.try_recv().is_err());
}

#[tokio::test]
async fn silence_has_words_too() {
    let mut silent = rule("r");
    silent.window.absence = Some(Duration::from_millis(1));
    silent.summary.prompt = PromptSource::Text("{{ window.reason }} of {{ messages|length }}".to_owned());
    let mut bench = bench(vec![silent]);
    assert_eq!(answer(&mut bench, "Nothing came.").await, "absence of 0");
    let (event, _) = event(&mut bench).await;
    assert_eq!(
        (event.window.reason, event.window.messages),
        (CloseReason::Absence, 0)
    );
    assert_eq!(event.text.as_deref(), Some("Nothing came."));
}

#[tokio::test]
async fn facts_go_without_words_where_the_model_fails() {
    let mut bench = bench(vec![rule("r")]);
    observe(&bench, [1.0, 2.0, 3.0]).await;
    let (_request, sink) = bench.asked().await;
    sink.fail(phi_edge_engine::Failure::Decoder("no".to_owned()));
    let (event, _) = event(&mut bench).await;
    assert_eq!(event.error.map(|error| error.code), Some(ErrorCode::Internal));
    assert_eq!(event.text, None);
    assert_eq!(event.stats[0].1.count, 3);
}

#[tokio::test]
async fn facts_go_without_words_where_the_model_is_busy_for_too_long() {
    let mut slow = rule("r");
    slow.summary.deadline = Duration::from_millis(50);
    let mut bench = bench(vec![slow]);
    bench.service.submit(support::job("a")).await.unwrap();
    let (_request, _sink) = bench.asked().await;
    observe(&bench, [1.0, 2.0, 3.0]).await;
    let (event, _) = event(&mut bench).await;
    assert_eq!(event.error.map(|error| error.code), Some(ErrorCode::Expired));
    assert_eq!(event.stats[0].1.max, Some(3.0));
}

#[tokio::test]
async fn events_of_a_group_come_in_the_order_of_their_windows() {
    let mut grouped = rule("r");
    grouped.group_by = Some(Selector::Topic(1));
    grouped.window.kind = WindowKind::Count { messages: 1 };
    let mut bench = Bench::with(config(vec![grouped]), 2, 64);
    for (topic, value) in [("plant/a", 1.0), ("plant/a", 2.0), ("plant/b", 3.0)] {
        let message = RuleMessage {
            topic: topic.to_owned(),
            ..message(value)
        };
        bench.service.ingest(&message);
    }
    // Two may be summarised at once: the second of a waits for the first, and b for neither.
    // Which of the two is asked for first is chance.
    let mut asked = [bench.asked().await, bench.asked().await];
    asked.sort_by_key(|(request, _)| request.prompt.first().and_then(|symbol| symbol.token()));
    let [(_, first), (_, of_b)] = asked;
    first.text("slow");
    of_b.finish(summary(Finish::Stop, 1));
    assert_eq!(event(&mut bench).await.0.group, "b");
    settle().await;
    assert!(bench.commands.try_recv().is_err(), "the next of a waits");
    first.finish(summary(Finish::Stop, 1));
    assert_eq!(event(&mut bench).await.0.stats[0].1.max, Some(1.0));
    answer(&mut bench, "2").await;
    assert_eq!(event(&mut bench).await.0.stats[0].1.max, Some(2.0));
}

#[tokio::test]
async fn what_does_not_fit_is_worded_in_parts() {
    // The engine's context holds 100 tokens, a byte each.
    let mut large = rule("r");
    large.window.kind = WindowKind::Count { messages: 30 };
    large.summary.max_parts = 2;
    large.summary.prompt = PromptSource::Text(
        "{% if parts %}{{ parts | join(' and ') }}{% else %}\
         {% for m in messages %}{{ m.fields.value }} {% endfor %}{% endif %}"
            .to_owned(),
    );
    let mut bench = bench(vec![large]);
    observe(&bench, (0..30).map(|n| f64::from(n) + 100.5)).await;
    let first = answer(&mut bench, "first").await;
    let second = answer(&mut bench, "second").await;
    let reduction = answer(&mut bench, "all").await;
    assert!(
        first.len() < 90 && second.ends_with("129.5"),
        "{first:?} {second:?}"
    );
    assert_eq!(reduction, "first and second");
    let (event, _) = event(&mut bench).await;
    assert_eq!(event.text.as_deref(), Some("all"));
    let shown = first.split_whitespace().count() + second.split_whitespace().count();
    assert_eq!(event.window.left_out, 30 - shown as u64);
    assert_eq!(event.completion_tokens, 6);
}

#[tokio::test]
async fn a_redelivery_and_a_publishers_repeat_count_once() {
    let mut once = rule("r");
    once.dedupe = Some(Selector::Field("/n".to_owned()));
    let bench = bench(vec![once]);
    observe(&bench, [0.0]).await;
    let again = RuleMessage {
        redelivered: true,
        ..message(0.0)
    };
    assert!(bench.service.ingest(&again).is_none());
    // The same `n` in another message.
    observe(&bench, [1.0, 2.0]).await;
    let counters = bench.service.rule_counters();
    assert_eq!(
        (counters.messages, counters.redelivered, counters.repeated),
        (2, 1, 1)
    );
}

#[tokio::test]
async fn what_is_beyond_the_cap_is_dropped_counted_and_told() {
    let mut small = rule("r");
    small.limits.store_bytes = 400;
    small.window.kind = WindowKind::Tumbling {
        every: Duration::from_hours(24),
    };
    let mut bench = bench(vec![small.clone()]);
    observe(&bench, [1.0, 2.0, 3.0, 4.0]).await;
    let counters = bench.service.rule_counters();
    assert_eq!((counters.messages, counters.dropped), (2, 2));
    assert!(counters.held_bytes <= 400);
    // A request gets through all the same.
    bench.service.submit(support::job("a")).await.unwrap();
    answer(&mut bench, "hi").await;
    bench.body().await;
    // A rule that counts otherwise ends the windows of the old one.
    small.window.kind = WindowKind::Count { messages: 3 };
    bench.service.set_rules(vec![small]).unwrap();
    answer(&mut bench, "cut short").await;
    let (event, _) = event(&mut bench).await;
    assert_eq!(
        (event.window.reason, event.window.messages, event.window.dropped),
        (CloseReason::Reload, 2, 2)
    );
    assert_eq!(bench.service.rule_counters().held, 0);
}

#[tokio::test]
async fn a_bad_rule_changes_nothing() {
    let bench = bench(vec![rule("r")]);
    observe(&bench, [1.0]).await;
    for (change, says) in [
        (
            (|rule| rule.window.early = Some("value >".to_owned())) as fn(&mut Rule),
            "`early`",
        ),
        (|rule| rule.window.early = Some("speed > 3".to_owned()), "speed"),
        (
            |rule| rule.summary.prompt = PromptSource::Text("{% for %}".to_owned()),
            "line 1",
        ),
        (
            |rule| rule.summary.prompt = PromptSource::BuiltIn("none".to_owned()),
            "none",
        ),
    ] {
        let mut bad = rule("r");
        change(&mut bad);
        let refused = bench.service.set_rules(vec![bad]).unwrap_err();
        assert!(refused.contains("\"r\"") && refused.contains(says), "{refused}");
    }
    assert_eq!(bench.service.rule_counters().held, 1);
}

#[tokio::test]
async fn thousands_that_the_broker_had_under_way_count_once() {
    const MESSAGES: usize = 5000;
    let mut large = rule("r");
    large.window.kind = WindowKind::Count { messages: 10_000 };
    let folder = tempfile::tempdir().unwrap();
    let bench = durable(vec![large.clone()], folder.path());
    let values = || (0..5000_u32).map(f64::from);
    for value in values() {
        // Not waited for each: what is written in order is stored in order.
        drop(bench.service.ingest(&message(value)));
    }
    bench.service.drain(Duration::ZERO).await;
    bench.service.close_store().await;
    drop(bench);
    // None of the acknowledgements has reached the broker: all comes again.
    let bench = durable(vec![large], folder.path());
    settle().await;
    for value in values() {
        let again = RuleMessage {
            redelivered: true,
            ..message(value)
        };
        assert!(bench.service.ingest(&again).is_none(), "{value}");
    }
    let counters = bench.service.rule_counters();
    assert_eq!((counters.held, counters.redelivered), (MESSAGES, MESSAGES as u64));
    // Packet ids come round: what is new counts, whatever it looks like.
    drop(bench.service.ingest(&message(7.0)));
    assert_eq!(bench.service.rule_counters().held, MESSAGES + 1);
}

#[tokio::test]
async fn an_open_window_survives_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let bench = durable(vec![rule("r")], folder.path());
    observe(&bench, [1.0, 2.0]).await;
    bench.service.drain(Duration::ZERO).await;
    bench.service.close_store().await;
    drop(bench);
    let mut bench = durable(vec![rule("r")], folder.path());
    settle().await;
    // What the broker could not know to be stored comes again.
    let again = RuleMessage {
        redelivered: true,
        ..message(2.0)
    };
    assert!(bench.service.ingest(&again).is_none());
    observe(&bench, [3.0]).await;
    assert_eq!(answer(&mut bench, "three").await, "1 2 3");
    let (event, _) = event(&mut bench).await;
    assert_eq!(event.window.messages, 3);
}

#[tokio::test]
async fn an_event_without_words_gets_them_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let mut bench = durable(vec![rule("r")], folder.path());
    observe(&bench, [1.0, 2.0, 3.0]).await;
    let (_request, _sink) = bench.asked().await;
    let image = copy(folder.path());
    drop(bench);
    let mut bench = durable(vec![rule("r")], image.path());
    answer(&mut bench, "again").await;
    let first = event(&mut bench).await;
    assert_eq!(first.0.text.as_deref(), Some("again"));
    // The broker never says that it has it.
    let image = copy(image.path());
    drop(bench);
    let mut bench = durable(vec![rule("r")], image.path());
    assert_eq!(event(&mut bench).await, first, "a copy is the same");
    assert!(bench.is_silent().await, "each window yields one event");
}

/// Images of the store at random moments, as a crash leaves them: what was counted adds up, and no window has two events.
#[tokio::test]
async fn crashes_lose_and_double_nothing() {
    let mut folder = tempfile::tempdir().unwrap();
    let mut events: std::collections::BTreeMap<String, u64> = std::collections::BTreeMap::new();
    let mut chance = 7_u64;
    let mut observed = 0_u64;
    for round in 0..20 {
        let mut bench = durable(vec![rule("r")], folder.path());
        chance = chance.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        for n in 0..(chance >> 33) % 8 {
            #[expect(clippy::cast_precision_loss, reason = "small numbers")]
            observe(&bench, [(round * 100 + n) as f64]).await;
            observed += 1;
        }
        // Some of what is asked is answered, and some of what is published is acknowledged.
        for _ in 0..(chance >> 40) % 4 {
            settle().await;
            if let Ok(EngineCommand::Generate { sink, .. }) = bench.commands.try_recv() {
                sink.finish(summary(Finish::Stop, 1));
            }
        }
        settle().await;
        while let Ok(reply) = bench.replies.try_recv() {
            if let ReplyBody::Event(published) = &reply.body {
                let known = events.insert(published.event.event_id.clone(), published.event.window.messages);
                assert!(known.is_none_or(|known| known == published.event.window.messages));
            }
            if chance & 1 == 0
                && let Some(delivery) = reply.delivery
            {
                bench.service.delivered(delivery);
            }
        }
        let image = copy(folder.path());
        drop(bench);
        folder = image;
    }
    let mut bench = durable(vec![rule("r")], folder.path());
    loop {
        settle().await;
        let mut moved = false;
        while let Ok(EngineCommand::Generate { sink, .. }) = bench.commands.try_recv() {
            sink.finish(summary(Finish::Stop, 1));
            moved = true;
        }
        while let Ok(reply) = bench.replies.try_recv() {
            if let ReplyBody::Event(published) = &reply.body {
                events.insert(published.event.event_id.clone(), published.event.window.messages);
            }
            moved = true;
        }
        let waiting = bench.service.rule_counters().waiting + bench.service.stats().outcomes_waiting;
        if !moved && waiting == 0 {
            break;
        }
    }
    let counted: u64 = events.values().sum();
    assert_eq!(counted + bench.service.rule_counters().held as u64, observed);
    assert_eq!(events.len() as u64, observed / 3);
}

/// The store's files as they are at this moment.
fn copy(folder: &Path) -> tempfile::TempDir {
    let image = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(folder).unwrap().flatten() {
        if entry.path().is_file() {
            std::fs::copy(entry.path(), image.path().join(entry.file_name())).unwrap();
        }
    }
    image
}

#[tokio::test]
async fn events_that_wait_keep_no_request_out() {
    let mut alone = rule("r");
    alone.summary.prompt = PromptSource::None;
    alone.window.kind = WindowKind::Count { messages: 1 };
    let config = ServiceConfig {
        queue: 1,
        ..config(vec![alone])
    };
    let mut bench = Bench::with(config, 1, 1);
    observe(&bench, [1.0, 2.0, 3.0, 4.0]).await;
    // One of them is in the channel.
    let mut stats = bench.service.watch_stats();
    stats.wait_for(|stats| stats.outcomes_waiting == 3).await.unwrap();
    bench.service.submit(job("a")).await.unwrap();
    bench.asked().await;
}

#[tokio::test]
async fn what_empties_the_store_empties_it_of_windows() {
    let folder = tempfile::tempdir().unwrap();
    let bench = durable(vec![rule("r")], folder.path());
    observe(&bench, [1.0, 2.0]).await;
    bench.service.close_store().await;
    let held = inspect(folder.path()).unwrap();
    assert_eq!((held.rule_messages, held.rule_events), (2, 0));
    assert!(purge(folder.path(), Purge::All).unwrap() >= 2);
    assert_eq!(inspect(folder.path()).unwrap().rule_messages, 0);
    let mut bench = durable(vec![rule("r")], folder.path());
    observe(&bench, [3.0]).await;
    assert!(bench.asks_nothing().await, "a window of one message");
}

#[tokio::test]
async fn events_that_wait_are_bounded_in_memory_and_in_the_store() {
    const EVENTS: u64 = 600;
    let folder = tempfile::tempdir().unwrap();
    let store = StoreConfig {
        folder: folder.path().to_owned(),
        max_bytes: 1 << 30,
        memory_fallback: false,
    };
    let mut each = rule("r");
    each.summary.prompt = PromptSource::None;
    each.window.kind = WindowKind::Count { messages: 1 };
    let config = ServiceConfig {
        event_bytes: 64 << 10,
        ..config(vec![each])
    };
    let opened = Store::open(store, LastEnd::Innocent).unwrap();
    let mut bench = Bench::on(config, 1, 64, Some(opened));
    observe(&bench, (0..EVENTS).map(|n| f64::from(u32::try_from(n).unwrap()))).await;
    let dropped = async {
        // The last of them is on its way to the store.
        while bench.service.rule_counters().events < EVENTS {
            tokio::task::yield_now().await;
        }
        bench.service.rule_counters()
    };
    let counters = dropped.await;
    assert!(counters.events_bytes <= 64 << 10, "{counters:?}");
    assert!(counters.events_dropped > 300, "{counters:?}");
    let mut taken = 0;
    let mut last = None;
    for _ in 0..EVENTS - counters.events_dropped {
        let (event, _) = event(&mut bench).await;
        last = event.stats[0].1.last.clone();
        taken += 1;
    }
    #[allow(clippy::cast_precision_loss)]
    let newest = Value::Number((EVENTS - 1) as f64);
    assert_eq!((taken, last), (EVENTS - counters.events_dropped, Some(newest)));
    assert_eq!(bench.service.rule_counters().events_bytes, 0);
}
