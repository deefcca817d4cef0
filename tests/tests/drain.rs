//! SIGTERM and Ctrl-C: draining, the last answers, offline.

#![allow(clippy::unwrap_used, missing_docs)]
#![cfg(unix)]

use phi_edge_mqtt::Client;
use phi_edge_tests::{BASE, Daemon, Mosquitto, client, fixture, has_library, json, next, state};
use serde_json::json;

async fn answering(settings: &[&str]) -> Option<(Mosquitto, Daemon, Client)> {
    let model = fixture("phi3-mini-tiny-fp32")?;
    if !has_library() {
        return None;
    }
    let broker = Mosquitto::start()?;
    // With 8 bits this model of random weights ends its answer by itself.
    let settings = [settings, &["runtime.kv_cache=f32"]].concat();
    let daemon = Daemon::start(broker.port, &model, &settings);
    let mut client = client(broker.port).await;
    state(&mut client, "ready").await;
    client.subscribe(&format!("{BASE}/response/#")).await.unwrap();
    let body = json!({"id":"a","prompt":"x","max_tokens":1900,"stream":true}).to_string();
    client
        .publish(&format!("{BASE}/request"), body, None)
        .await
        .unwrap();
    next(&mut client, "a chunk", |m| {
        (m.property("kind") == Some("chunk")).then_some(())
    })
    .await;
    Some((broker, daemon, client))
}

/// The order of what a watcher sees after the signal, chunks left out.
async fn seen_until_offline(client: &mut Client) -> Vec<String> {
    let mut seen = Vec::new();
    next(client, "offline", |message| {
        let body = json(message);
        if let Some(state) = body["state"].as_str() {
            seen.push(state.to_owned());
        } else if message.property("kind") != Some("chunk") && message.topic.contains("/response/") {
            let ended = body["finish_reason"].as_str().or(body["error"]["code"].as_str());
            seen.push(format!("{}: {}", body["id"].as_str().unwrap(), ended.unwrap()));
        }
        (seen.last().is_some_and(|last| last == "offline")).then_some(())
    })
    .await;
    seen
}

#[tokio::test]
async fn a_running_answer_ends_within_the_grace_time() {
    for signal in ["TERM", "INT"] {
        let Some((_broker, mut daemon, mut client)) = answering(&["limits.drain_grace=60s"]).await else {
            return;
        };
        daemon.signal(signal);
        assert_eq!(
            seen_until_offline(&mut client).await,
            ["draining", "a: length", "offline"],
            "SIG{signal}"
        );
        assert!(daemon.wait().success());
    }
}

#[tokio::test]
async fn an_answer_that_takes_longer_goes_on_at_the_next_start() {
    let Some((broker, mut daemon, mut client)) = answering(&["limits.drain_grace=0s"]).await else {
        return;
    };
    daemon.signal("TERM");
    let seen = seen_until_offline(&mut client).await;
    assert_eq!(seen.first().map(String::as_str), Some("draining"));
    assert!(daemon.wait().success());
    if seen.iter().any(|line| line.starts_with("a: ")) {
        // It was quicker than the signal.
        return;
    }
    let model = fixture("phi3-mini-tiny-fp32").unwrap();
    let _daemon = Daemon::start_in(daemon.kill(), broker.port, &model, &["runtime.kv_cache=f32"]);
    let outcome = next(&mut client, "the answer", |message| {
        let body = json(message);
        (message.property("kind") == Some("final")).then_some(body)
    })
    .await;
    assert_eq!(outcome["id"], "a");
    assert_eq!(outcome["finish_reason"], "length");
}

#[tokio::test]
async fn a_second_signal_ends_at_once() {
    let Some((_broker, mut daemon, mut client)) = answering(&["limits.drain_grace=60s"]).await else {
        return;
    };
    // As if the answer took for ever: a stopped consumer can't hold the daemon, so hold its engine instead.
    daemon.signal("TERM");
    next(&mut client, "draining", |m| {
        (json(m)["state"] == "draining").then_some(())
    })
    .await;
    daemon.signal("TERM");
    let status = daemon.wait();
    // Whether the answer ended first is a race; both ends are orderly.
    assert!(matches!(status.code(), Some(0 | 1)), "{status}");
}
