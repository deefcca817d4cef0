//! A thousand cancels at random moments leave nothing behind: no slot, no memory, no thread.

#![cfg(target_os = "linux")]
#![allow(clippy::cast_possible_truncation, clippy::unwrap_used, missing_docs)]

use std::collections::HashMap;

use phi_edge_mqtt::Client;
use phi_edge_tests::{BASE, Chance, Daemon, Mosquitto, client, demo_model, has_library, json, next, state};
use serde_json::json;

/// Requests that are under way at once.
const MAX_RUNNING_REQUESTS: usize = 12;

#[tokio::test]
async fn a_thousand_cancels_leave_nothing_behind() {
    if !has_library() {
        return;
    }
    let Some(broker) = Mosquitto::start() else { return };
    let daemon = Daemon::start(broker.port, &demo_model(), &[]);
    let mut client = client(broker.port).await;
    state(&mut client, "ready").await;
    for topic in ["response/#", "stats"] {
        client.subscribe(&format!("{BASE}/{topic}")).await.unwrap();
    }
    // The same work beforehand, so that what is kept on purpose (remembered prompts, buffers) is there already.
    let mut moments = Chance::seeded(0x2545_F491_4F6C_DD1D);
    let asked = cancel_some(&mut client, 200, 0, &mut moments).await;
    idle(&mut client, asked).await;
    let before = Process::of(&daemon);
    let asked = cancel_some(&mut client, 1000, asked, &mut moments).await;
    idle(&mut client, asked).await;
    // Threads that encode prompts come as they are needed, and go when they were not for ten seconds.
    let waited = std::time::Instant::now();
    while Process::of(&daemon).threads > before.threads {
        assert!(
            waited.elapsed() < phi_edge_tests::TIMEOUT,
            "threads are left behind"
        );
        client
            .receive(std::time::Duration::from_millis(200))
            .await
            .unwrap();
    }
    let after = Process::of(&daemon);
    let most = before.resident_kib + (before.resident_kib / 50).max(32 << 10);
    assert!(
        after.resident_kib <= most,
        "{} KiB before, {} KiB after",
        before.resident_kib,
        after.resident_kib
    );
    // All of its slots still serve.
    let whole = json!({"id": "whole", "prompt": "Hello", "max_tokens": 8});
    client
        .publish(&format!("{BASE}/request"), whole.to_string(), None)
        .await
        .unwrap();
    next(&mut client, "an answer", |message| {
        let reply = json(message);
        (reply["id"] == "whole" && message.property("kind") == Some("final")).then_some(())
    })
    .await;
    println!(
        "{asked} asked, 1,200 cancelled; {} KiB and {} threads before, {} KiB and {} after",
        before.resident_kib, before.threads, after.resident_kib, after.threads
    );
}

/// Asks and cancels, `MAX_RUNNING_REQUESTS` side by side, until so many ended as cancelled; requests are numbered from `first`, and the
/// next number is returned. Each has exactly one outcome.
async fn cancel_some(client: &mut Client, wanted: usize, first: u64, moments: &mut Chance) -> u64 {
    let mut next_number = first;
    // By id: chunks to go until it is cancelled.
    let mut under_way: HashMap<String, u64> = HashMap::new();
    let mut cancelled = 0;
    loop {
        while under_way.len() < MAX_RUNNING_REQUESTS && cancelled + under_way.len() < wanted {
            let n = next_number;
            next_number += 1;
            let id = format!("r{n}");
            let words = "press-07 182 bar, ".repeat(1 + moments.size(0..40));
            let body = json!({"id": id, "prompt": words, "max_tokens": 800, "stream": true, "temperature": 2, "seed": n});
            client
                .publish(&format!("{BASE}/request"), body.to_string(), None)
                .await
                .unwrap();
            let chunks = moments.below(6);
            if chunks == 0 {
                cancel(client, &id).await;
            }
            under_way.insert(id, chunks);
        }
        if under_way.is_empty() {
            return next_number;
        }
        let (id, kind, body) = next(client, "a reply", |message| {
            let reply = json(message);
            let kind = message.property("kind")?.to_owned();
            Some((reply["id"].as_str()?.to_owned(), kind, reply))
        })
        .await;
        if kind == "chunk" {
            let now = under_way.get_mut(&id).is_some_and(|chunks| {
                let last = *chunks == 1;
                *chunks = chunks.saturating_sub(1);
                last
            });
            if now {
                cancel(client, &id).await;
            }
        } else {
            assert!(under_way.remove(&id).is_some(), "a second outcome of {id}");
            // One that had not begun has no answer to be cut short.
            let unbegun = kind == "error" && body["error"]["code"] == "cancelled";
            assert!(unbegun || kind == "final", "{body}");
            cancelled += usize::from(unbegun || body["finish_reason"] == "cancelled");
        }
    }
}

async fn cancel(client: &mut Client, id: &str) {
    let body = json!({ "id": id }).to_string();
    client
        .publish(&format!("{BASE}/cancel"), body, None)
        .await
        .unwrap();
}

/// Waits until all of `requests` are over and no slot is taken.
async fn idle(client: &mut Client, requests: u64) {
    let topic = format!("{BASE}/stats");
    // Retained: what was published before counts too.
    client.subscribe(&topic).await.unwrap();
    next(client, "idle slots", |message| {
        let stats = json(message);
        let count = |name: &str| stats[name].as_u64().unwrap_or(u64::MAX);
        let over = message.topic == topic
            && count("served").saturating_add(count("failed")) >= requests
            && ["queued", "running", "outcomes_waiting"]
                .iter()
                .all(|name| count(name) == 0);
        over.then_some(())
    })
    .await;
}

/// What the system says of a process.
struct Process {
    resident_kib: u64,
    threads: u64,
}

impl Process {
    fn of(daemon: &Daemon) -> Self {
        let status = std::fs::read_to_string(format!("/proc/{}/status", daemon.id())).unwrap();
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
            line.split_whitespace().next().unwrap().parse().unwrap()
        };
        Self {
            resident_kib: field("VmRSS:"),
            threads: field("Threads:"),
        }
    }
}
