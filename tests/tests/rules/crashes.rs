//! kill -9 while windows are open: each message is in exactly one event.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use phi_edge_tests::{BASE, Daemon, demo_model, json, next, skip, state};

use super::{Plant, counting, span, start};

#[tokio::test]
async fn an_open_window_survives_a_kill() {
    let rule = counting("\"plant/+/temperature\"", 40);
    let Some(mut plant) = Plant::with(&[("counts", &rule)]).await else {
        return;
    };
    // The kills come at whatever the daemon is doing with the messages before.
    for round in 0..4_u32 {
        plant.read("mixer-07", round * 30..round * 30 + 20).await;
        let folder = plant.kill();
        plant.read("mixer-07", round * 30 + 20..round * 30 + 30).await;
        // Not waited for: events that came meanwhile would be passed over.
        plant.daemon = start(&plant.broker, folder, &plant.rules);
    }
    let mut events = BTreeMap::new();
    while events.len() < 3 {
        let event = plant.event("counts").await;
        let (id, copy) = (event["event_id"].as_str().unwrap().to_owned(), event.clone());
        // An event may come twice, and is the same then.
        assert_eq!(*events.entry(id).or_insert(copy), event);
    }
    let mut values = Vec::new();
    for event in events.values() {
        values.push(span(event));
    }
    values.sort_unstable();
    assert_eq!(values, [(0, 39, 40), (40, 79, 40), (80, 119, 40)]);
}

#[tokio::test]
async fn a_window_that_ended_meanwhile_is_published_late() {
    let library = "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1";
    if !Path::new(library).exists() {
        return skip("libfaketime is not installed: the clock is not set");
    }
    let rule = "topics = [\"plant/+/temperature\"]\nfields = { temperature = \"/temperature\" }\nfacts_only = true\n\
                window = { kind = \"tumbling\", every = \"1d\", tz = \"UTC\" }\n";
    let Some(mut plant) = Plant::with(&[("daily", rule)]).await else {
        return;
    };
    plant.read("mixer-07", 1..=5).await;
    plant.stored(5).await;
    let folder = plant.kill();
    // What comes while the daemon is down waits in the broker, and counts when it arrives.
    plant.read("mixer-07", 6..=7).await;
    let mut later = Command::new("env");
    later
        .arg(format!("LD_PRELOAD={library}"))
        .args(["FAKETIME=+2d", "FAKETIME_DONT_FAKE_MONOTONIC=1"])
        .arg(phi_edge_tests::phi_edge());
    let rules = format!("node.rules_dir={}", plant.rules.path().display());
    plant.daemon = Daemon::start_under(later, folder, plant.broker.port, &demo_model(), &[&rules]);
    let event = plant.event("daily").await;
    assert_eq!(span(&event), (1, 5, 5));
    assert_eq!(event["window"]["reason"], "due");
    assert_eq!(event["window"]["closed_late"], true, "{event}");
    state(&mut plant.client, "ready").await;
    plant.held(2).await;
}

#[tokio::test]
async fn an_event_that_waits_for_words_gets_them_from_the_next_process() {
    let Some(mut plant) = Plant::with(&[("digest", super::DIGEST)]).await else {
        return;
    };
    // Many windows end at once; the kill comes while they are worded.
    for machine in 0..8 {
        plant.read(&format!("mixer-{machine}"), [69, 82, 77]).await;
    }
    let topic = format!("{BASE}/event/digest");
    let mut events = BTreeMap::new();
    let mut killed = false;
    while events.len() < 8 {
        let event = next(&mut plant.client, "events", |message| {
            (message.topic == topic).then(|| json(message))
        })
        .await;
        let machine = event["group"].as_str().unwrap().to_owned();
        let first = events.entry(machine).or_insert_with(|| event.clone());
        assert_eq!(*first, event, "one event a window, and copies are the same");
        assert!(event["text"].is_string(), "{event}");
        if !killed {
            killed = true;
            let folder = plant.kill();
            plant.daemon = start(&plant.broker, folder, &plant.rules);
        }
    }
}
