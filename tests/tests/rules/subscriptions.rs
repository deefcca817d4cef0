//! Reloads that change what rules subscribe to, under traffic: each message of a topic that stays counts once.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use phi_edge_tests::{
    BASE, Counted, CountedEvents, Daemon, Mosquitto, TIMEOUT, client, demo_model, free_port, has_library,
    state,
};
use tempfile::TempDir;

use super::eventually;

/// What is published on all the time.
const TOPIC: &str = "plant/mixer-07/temperature";
/// Topics of the rule that counts: all of it matches [`TOPIC`].
const COUNTS: [&str; 6] = [
    "\"plant/+/temperature\"",
    "\"plant/+/temperature\", \"plant/#\"",
    "\"plant/#\"",
    "\"plant/mixer-07/+\", \"+/mixer-07/temperature\"",
    "\"plant/mixer-07/temperature\"",
    "\"plant/mixer-07/#\", \"plant/+/temperature\", \"plant/mixer-07/temperature\"",
];
/// Topics of a rule that comes and goes beside it.
const OTHER_RULE_TOPICS: [Option<&str>; 3] =
    [None, Some("\"plant/#\", \"hall/#\""), Some("\"+/+/temperature\"")];
/// Messages that may wait for the daemon: a debug build takes fewer a second than a client sends.
const MAX_PENDING: u64 = 4000;
/// The same at the embedded broker, which drops the oldest copies of those beyond a thousand: a message has up to eight while
/// topics change.
const MAX_PENDING_EMBEDDED: u64 = 60;
/// Messages that are published at once.
const BURST: usize = 16;
/// Between two looks at what was counted.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

fn write(rules: &Path, round: usize) {
    let rule = |topics: &str| {
        format!(
            "topics = [{topics}]\nfields = {{ n = \"/n\" }}\nfacts_only = true\n\
             window = {{ kind = \"count\", messages = 20 }}\n"
        )
    };
    let counts = COUNTS[round % COUNTS.len()];
    std::fs::write(rules.join("counts.toml"), rule(counts)).unwrap();
    let beside = rules.join("beside.toml");
    match OTHER_RULE_TOPICS[round % OTHER_RULE_TOPICS.len()] {
        Some(topics) => std::fs::write(beside, rule(topics)).unwrap(),
        None => drop(std::fs::remove_file(beside)),
    }
    std::fs::write(
        rules.join("end.toml"),
        rule("\"loop/end\"").replace("= 20", "= 1"),
    )
    .unwrap();
}

/// Publishes as fast as the daemon takes it, until told to stop.
async fn speak(port: u16, ahead: u64, stop: Arc<AtomicBool>, taken: Arc<AtomicU64>) -> Counted {
    let mut speaker = client(port).await;
    let mut said = Counted::default();
    while !stop.load(Ordering::Relaxed) {
        for _ in 0..BURST {
            said.add(said.messages + 1);
            let payload = format!("{{\"n\":{}}}", said.messages);
            speaker.publish_later(TOPIC, payload).unwrap();
        }
        said.add(said.messages + 1);
        let payload = format!("{{\"n\":{}}}", said.messages);
        speaker.publish(TOPIC, payload, None).await.unwrap();
        while said.messages > taken.load(Ordering::Relaxed) + ahead && !stop.load(Ordering::Relaxed) {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
    said
}

/// Reloads under traffic, by hand of `daemon`, whose rules are in `rules`; `crash` starts it again after a kill.
async fn change(
    port: u16,
    ahead: u64,
    rules: &TempDir,
    mut daemon: Daemon,
    crash: Option<&dyn Fn(TempDir) -> Daemon>,
) {
    let mut listener = client(port).await;
    listener.subscribe(&format!("{BASE}/event/#")).await.unwrap();
    state(&mut listener, "ready").await;
    let stop = Arc::new(AtomicBool::new(false));
    let taken = Arc::new(AtomicU64::new(0));
    let speaker = tokio::spawn(speak(port, ahead, Arc::clone(&stop), Arc::clone(&taken)));
    let mut events = CountedEvents::default();
    for round in 1..=14 {
        // Some in quick succession, some after the one before has come to rest.
        let looks = if round % 3 == 0 { 1 } else { 20 };
        for _ in 0..looks {
            events
                .listen(&mut listener, Instant::now() + POLL_INTERVAL)
                .await
                .unwrap();
            taken.store(events.of("counts").messages, Ordering::Relaxed);
        }
        write(rules.path(), round);
        if let Some(start) = crash
            && round % 4 == 0
        {
            // With other topics than those that it died with.
            daemon = start(daemon.kill());
            state(&mut client(port).await, "ready").await;
            continue;
        }
        let reloads = daemon.log().matches("the configuration is read again").count();
        daemon.signal("HUP");
        eventually("a reload", || {
            daemon.log().matches("the configuration is read again").count() > reloads
        })
        .await;
    }
    stop.store(true, Ordering::Relaxed);
    let said = speaker.await.unwrap();
    client(port)
        .await
        .publish("loop/end", "{\"n\":1}", None)
        .await
        .unwrap();
    let ended = |events: &CountedEvents| events.of("end").messages == 1;
    let ended = events.listen_until(&mut listener, TIMEOUT, ended).await.unwrap();
    assert!(ended, "the last message did not come");
    std::fs::remove_file(rules.path().join("counts.toml")).unwrap();
    daemon.signal("HUP");
    let enough = |events: &CountedEvents| events.of("counts").messages >= said.messages;
    events
        .listen_until(&mut listener, TIMEOUT / 6, enough)
        .await
        .unwrap();
    events
        .listen(&mut listener, Instant::now() + Duration::from_millis(300))
        .await
        .unwrap();
    assert_eq!(events.of("counts"), said);
    let log = daemon.log();
    assert!(!log.contains("can't hear its own status"), "{log}");
}

#[tokio::test]
async fn at_mosquitto_each_message_counts_once_while_topics_change() {
    if !has_library() {
        return;
    }
    let lines = "allow_anonymous true\nmax_queued_messages 0\n";
    let Some(broker) = Mosquitto::with(lines, |_| {}) else {
        return;
    };
    let rules = tempfile::tempdir().unwrap();
    write(rules.path(), 0);
    let daemon = super::start(&broker, tempfile::tempdir().unwrap(), &rules);
    change(broker.port, MAX_PENDING, &rules, daemon, None).await;
}

#[tokio::test]
async fn at_mosquitto_each_message_counts_once_while_topics_change_between_crashes() {
    if !has_library() {
        return;
    }
    let lines = "allow_anonymous true\nmax_queued_messages 0\nmax_inflight_messages 0\n";
    let Some(broker) = Mosquitto::with(lines, |_| {}) else {
        return;
    };
    let rules = tempfile::tempdir().unwrap();
    write(rules.path(), 0);
    let daemon = super::start(&broker, tempfile::tempdir().unwrap(), &rules);
    let again = |folder| super::start(&broker, folder, &rules);
    change(broker.port, MAX_PENDING, &rules, daemon, Some(&again)).await;
}

#[tokio::test]
async fn at_the_embedded_broker_each_message_counts_once_while_topics_change() {
    if !has_library() {
        return;
    }
    let rules = tempfile::tempdir().unwrap();
    write(rules.path(), 0);
    let port = free_port();
    let settings = [
        "mqtt.embedded=true".to_owned(),
        format!("mqtt.embedded_listen=127.0.0.1:{port}"),
        format!("node.rules_dir={}", rules.path().display()),
    ];
    let settings: Vec<&str> = settings.iter().map(String::as_str).collect();
    let daemon = Daemon::start(port, &demo_model(), &settings);
    eventually("a broker", || {
        std::net::TcpStream::connect(("127.0.0.1", port)).is_ok()
    })
    .await;
    change(port, MAX_PENDING_EMBEDDED, &rules, daemon, None).await;
}
