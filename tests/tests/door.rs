//! Floods of large requests: what they cost the node, and who is still served.

#![allow(clippy::unwrap_used, missing_docs)]
#![cfg(target_os = "linux")]

use std::collections::HashSet;

use phi_edge_mqtt::Client;
use phi_edge_tests::{BASE, Daemon, Mosquitto, client, demo_model, has_library, json, next, state};
use serde_json::{Value, json};

/// The memory that all of it may take, in KiB: the budgets of encoding and of what waits, and what allocators keep. Without
/// them twenty such prompts took 3.4 GB.
const MOST_KIB: u64 = 300 << 10;

/// The most memory that a process has had, in KiB.
fn peak(daemon: &Daemon) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", daemon.id())).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// A request of a megabyte; texts that tokenizers find easy and difficult.
fn large(n: usize) -> Value {
    let unit = ["The pump runs at seven bar. ", "x ", "12345 ", "漢字", "a"][n % 5];
    let mut prompt = format!("{n} ");
    while prompt.len() < 1_000_000 {
        prompt.push_str(unit);
    }
    json!({"id": format!("large-{n}"), "prompt": prompt})
}

async fn flood(from: &mut Client, who: &str, count: usize) {
    for n in 0..count {
        let body = large(n).to_string();
        from.publish(&format!("{BASE}/request/{who}"), body, None)
            .await
            .unwrap();
    }
}

/// Waits for the outcomes of `count` large requests; each is refused by its measure.
async fn refused(client: &mut Client, count: usize) {
    let mut left: HashSet<String> = (0..count).map(|n| format!("large-{n}")).collect();
    while !left.is_empty() {
        let error = next(client, "a refusal", |message| {
            let body = json(message);
            (message.property("kind") == Some("error")).then_some(body)
        })
        .await;
        let code = error["error"]["code"].as_str().unwrap();
        let id = error["id"].as_str().unwrap();
        assert!(matches!(code, "context_overflow" | "busy"), "{error}");
        if code == "context_overflow" {
            let message = error["error"]["message"].as_str().unwrap();
            assert!(message.contains("at least"), "{message}");
        }
        left.remove(id);
    }
}

#[tokio::test]
async fn twenty_prompts_of_a_megabyte_cost_little_and_hold_nobody_up() {
    if !has_library() {
        return;
    }
    let Some(broker) = Mosquitto::start() else { return };
    let daemon = Daemon::start(broker.port, &demo_model(), &[]);
    let mut honest = client(broker.port).await;
    state(&mut honest, "ready").await;
    honest
        .subscribe(&format!("{BASE}/response/honest/#"))
        .await
        .unwrap();
    let mut mallory = client(broker.port).await;
    mallory
        .subscribe(&format!("{BASE}/response/mallory/#"))
        .await
        .unwrap();
    let quiet = peak(&daemon);
    flood(&mut mallory, "mallory", 20).await;
    honest
        .publish(
            &format!("{BASE}/request/honest"),
            json!({"id": "q", "prompt": "Hello", "max_tokens": 4}).to_string(),
            None,
        )
        .await
        .unwrap();
    next(&mut honest, "an answer", |message| {
        (message.property("kind") == Some("final") && json(message)["id"] == "q").then_some(())
    })
    .await;
    refused(&mut mallory, 20).await;
    let cost = peak(&daemon) - quiet;
    assert!(cost < MOST_KIB, "{cost} KiB");
}

#[tokio::test]
async fn what_waited_for_the_node_at_the_broker_does_not_fill_its_memory() {
    const MESSAGES: usize = 120;
    if !has_library() {
        return;
    }
    // As many under way as the node allows, whatever their size.
    let lines = "allow_anonymous true\nmax_inflight_messages 0\nmax_queued_messages 0\n";
    let Some(broker) = Mosquitto::with(lines, |_| {}) else {
        return;
    };
    let mut daemon = Daemon::start(broker.port, &demo_model(), &[]);
    let mut mallory = client(broker.port).await;
    state(&mut mallory, "ready").await;
    let quiet = peak(&daemon);
    daemon.signal("TERM");
    assert!(daemon.wait().success());
    let folder = daemon.kill();
    flood(&mut mallory, "mallory", MESSAGES).await;
    mallory
        .subscribe(&format!("{BASE}/response/mallory/#"))
        .await
        .unwrap();
    // They come as soon as it is connected, before its model is loaded.
    let daemon = Daemon::start_in(folder, broker.port, &demo_model(), &[]);
    refused(&mut mallory, MESSAGES).await;
    let cost = peak(&daemon).saturating_sub(quiet);
    assert!(cost < MOST_KIB, "{cost} KiB");
}
