//! What becomes of events while the broker is away, with a live daemon.

#![allow(clippy::unwrap_used, missing_docs, reason = "test code")]

use std::time::{Duration, Instant};

use phi_edge_tests::{
    BASE, Daemon, Mosquitto, TIMEOUT, client, demo_model, has_library, http, json, next, state,
};

/// Two hundred events a second, without any message.
fn rules() -> String {
    let rule = |name: String, output: &str| {
        format!(
            "[[rules]]\nname = \"{name}\"\ntopics = [\"plant/#\"]\nfacts_only = true\noutput = {output}\n\
             window = {{ kind = \"tumbling\", every = \"100ms\", empty = true }}\n"
        )
    };
    (0..10)
        .flat_map(|n| {
            [
                rule(format!("brief-{n}"), "{ expiry = \"2s\" }"),
                rule(
                    format!("newest-{n}"),
                    "{ topic = \"plant-state/{rule}\", retain = true }",
                ),
            ]
        })
        .collect()
}

/// Events of each kind that are waited for: most of what comes at first is on its way in the link.
const MIN_EVENTS: f64 = 30.0;

fn unpublished(port: u16, reason: &str) -> f64 {
    let (_, page) = http(port, "GET /metrics HTTP/1.1\r\nHost: localhost").unwrap();
    let name = format!("phi_edge_rule_events_unpublished_total{{reason=\"{reason}\"}} ");
    let value = page.lines().find_map(|line| line.strip_prefix(&name));
    value.and_then(|value| value.parse().ok()).unwrap_or(0.0)
}

fn metrics_port(daemon: &Daemon) -> u16 {
    let from = Instant::now();
    loop {
        let log = daemon.log();
        let line = log.lines().find(|line| line.contains("metrics are served"));
        let port = line.and_then(|line| line.split("127.0.0.1:").nth(1));
        let port = port.map(|rest| rest.chars().take_while(char::is_ascii_digit).collect::<String>());
        if let Some(port) = port.and_then(|port| port.parse().ok()) {
            return port;
        }
        assert!(from.elapsed() < TIMEOUT, "no metrics: {log}");
        std::thread::yield_now();
    }
}

async fn wait_for(what: &str, mut done: impl FnMut() -> bool) {
    let from = Instant::now();
    while !done() {
        assert!(from.elapsed() < 3 * TIMEOUT, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

#[tokio::test]
async fn events_expire_and_are_superseded_while_the_broker_is_away() {
    if !has_library() {
        return;
    }
    let Some(mut broker) = Mosquitto::start() else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("rules.toml"), rules()).unwrap();
    let rules = format!("node.rules_dir={}", folder.path().display());
    let settings = [rules.as_str(), "metrics.listen=127.0.0.1:0"];
    let daemon = Daemon::start(broker.port, &demo_model(), &settings);
    let port = metrics_port(&daemon);
    {
        let mut client = client(broker.port).await;
        state(&mut client, "ready").await;
        client.subscribe(&format!("{BASE}/event/#")).await.unwrap();
        let expiring = format!("{BASE}/event/brief-0");
        next(&mut client, "an event", |message| {
            (message.topic == expiring).then_some(())
        })
        .await;
    }
    broker.stop();
    wait_for("expired events", || unpublished(port, "expired") >= MIN_EVENTS).await;
    wait_for("superseded events", || {
        unpublished(port, "superseded") >= MIN_EVENTS
    })
    .await;
    assert!(unpublished(port, "dropped") < 1.0);
    broker.start_again();
    let mut client = client(broker.port).await;
    client.subscribe(&format!("{BASE}/event/#")).await.unwrap();
    client.subscribe("plant-state/#").await.unwrap();
    for topic in [format!("{BASE}/event/brief-0"), "plant-state/newest-0".to_owned()] {
        let event = next(&mut client, "an event after the outage", |message| {
            (message.topic == topic && !message.retained).then(|| json(message))
        })
        .await;
        assert!(event["event_id"].is_string(), "{event}");
    }
}
