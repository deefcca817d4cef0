//! A thousand malformed payloads over a real broker: each gets an error, or is counted as unanswerable.

#![allow(clippy::unwrap_used, missing_docs)]

use std::collections::HashSet;

use phi_edge_tests::{BASE, Daemon, Mosquitto, client, demo_model, has_library, json, next, state};
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;

const PAYLOADS: usize = 1000;

/// No request, whatever it is: broken JSON, wrong types, wrong values, binary.
fn malformed() -> impl Strategy<Value = Vec<u8>> {
    let broken = r"\{[^}]{0,40}".prop_map(String::into_bytes);
    let wrong = r#"\{"prompt":("x"|3|null|\[\]),"(max_tokens|top_p|priority|nonsense|id)":(-1|\{\}|"[ !]{1,9}"|1e400)\}"#
        .prop_map(String::into_bytes);
    let empty = Just(b"{}".to_vec());
    let binary = proptest::collection::vec(any::<u8>(), 1..200).prop_map(|mut bytes| {
        bytes.insert(0, 0xff);
        bytes
    });
    let deep = (100usize..400).prop_map(|n| format!("{{\"prompt\":{}", "[".repeat(n)).into_bytes());
    prop_oneof![broken, wrong, empty, binary, deep]
}

#[tokio::test]
async fn each_gets_an_error_or_is_counted() {
    if !has_library() {
        return;
    }
    let Some(broker) = Mosquitto::start() else { return };
    let mut daemon = Daemon::start(broker.port, &demo_model(), &["log.level=warn"]);
    let mut sender = client(broker.port).await;
    let mut receiver = client(broker.port).await;
    state(&mut receiver, "ready").await;
    receiver.subscribe(&format!("{BASE}/response/#")).await.unwrap();
    receiver.subscribe(&format!("{BASE}/stats")).await.unwrap();
    let topic = format!("{BASE}/request");
    let answer = format!("{BASE}/response/malformed");
    let mut runner = TestRunner::deterministic();
    let strategy = malformed();
    let mut answerable = HashSet::new();
    for n in 0..PAYLOADS {
        let payload = strategy.new_tree(&mut runner).unwrap().current();
        let data = u32::try_from(n).unwrap().to_be_bytes();
        // Two in three say where an error may go.
        let response = (n % 3 != 0).then_some((answer.as_str(), &data[..]));
        if response.is_some() {
            answerable.insert(data.to_vec());
        }
        sender.publish(&topic, payload, response).await.unwrap();
    }
    let mut counted = 0;
    let unanswerable = (PAYLOADS - answerable.len()) as u64;
    next(&mut receiver, "all errors and the count", |message| {
        let body = json(message);
        if message.topic.ends_with("/stats") {
            counted = body["link"]["unanswerable"].as_u64().unwrap();
        } else if let Some(data) = &message.correlation {
            assert_eq!(message.property("kind"), Some("error"), "{body}");
            let code = body["error"]["code"].as_str().unwrap();
            assert!(matches!(code, "bad_request" | "unsupported"), "{body}");
            assert!(!body["error"]["message"].as_str().unwrap().is_empty());
            assert!(answerable.remove(data.as_ref()), "a second answer: {body}");
        }
        (answerable.is_empty() && counted == unanswerable).then_some(())
    })
    .await;
    assert!(daemon.runs());
    assert!(!daemon.log().contains("panicked"), "{}", daemon.log());
    // And it still answers.
    sender
        .publish(&topic, r#"{"id":"after","prompt":"Hello"}"#, None)
        .await
        .unwrap();
    next(&mut receiver, "an answer", |m| {
        (json(m)["id"] == "after").then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_flood_of_refusals_does_not_fill_the_log() {
    const FLOOD: usize = 300;
    if !has_library() {
        return;
    }
    let Some(broker) = Mosquitto::start() else { return };
    let mut daemon = Daemon::start(broker.port, &demo_model(), &["log.level=info"]);
    let mut sender = client(broker.port).await;
    state(&mut sender, "ready").await;
    sender.subscribe(&format!("{BASE}/dead-letter")).await.unwrap();
    for _ in 0..FLOOD {
        let topic = format!("{BASE}/request");
        sender.publish(&topic, "{}", None).await.unwrap();
    }
    let mut refused = 0;
    next(&mut sender, "the refusals", |message| {
        refused += usize::from(message.topic.ends_with("/dead-letter"));
        (refused == FLOOD).then_some(())
    })
    .await;
    daemon.signal("TERM");
    assert!(daemon.wait().success());
    let log = daemon.log();
    let lines = log.matches("request refused ").count();
    assert!((1..FLOOD / 2).contains(&lines), "{lines} lines:\n{log}");
    let left_out: usize = log
        .lines()
        .filter(|line| line.contains("lines were left out of the log") && line.contains("request refused"))
        .filter_map(|line| {
            line.split_once("lines=")?
                .1
                .split(' ')
                .next()?
                .parse::<usize>()
                .ok()
        })
        .sum();
    assert_eq!(lines + left_out, FLOOD, "{log}");
}
