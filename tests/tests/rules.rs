//! Rules at Debian's mosquitto: what machines say becomes events, as an operator and his broker see it.

#![allow(clippy::unwrap_used, missing_docs)]

#[path = "rules/commands.rs"]
mod commands;
#[path = "rules/crashes.rs"]
mod crashes;
#[path = "rules/events.rs"]
mod events;
#[path = "rules/reload.rs"]
mod reload;
#[path = "rules/subscriptions.rs"]
mod subscriptions;
#[path = "rules/topics.rs"]
mod topics;

use std::time::{Duration, Instant};

use phi_edge_mqtt::Client;
use phi_edge_tests::{
    BASE, Daemon, Mosquitto, NODE, TIMEOUT, client, demo_model, has_library, json, next, state,
};
use serde_json::Value;
use tempfile::TempDir;

/// A broker that says in its log what is subscribed to, what is left, and what was acknowledged.
const TALKATIVE: &str =
    "allow_anonymous true\nlog_type error\nlog_type subscribe\nlog_type unsubscribe\nlog_type debug\n";

/// Three readings of a machine become one event, in words that the demonstration model knows.
const DIGEST: &str = r#"
topics = ["plant/+/temperature"]
group_by = "topic:1"
fields = { temperature = "/temperature" }
template = "demo-digest"
window = { kind = "count", messages = 3 }
"#;

/// A broker, the daemon with rules, and a client that listens to events.
struct Plant {
    broker: Mosquitto,
    daemon: Daemon,
    rules: TempDir,
    client: Client,
}

impl Plant {
    /// With these rules, by name, ready; `None` (and said so) where something is missing.
    async fn with(rules: &[(&str, &str)]) -> Option<Self> {
        if !has_library() {
            return None;
        }
        let broker = Mosquitto::with(TALKATIVE, |_| {})?;
        Some(Self::at(broker, rules).await)
    }

    async fn at(broker: Mosquitto, rules: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in rules {
            std::fs::write(folder.path().join(format!("{name}.toml")), text).unwrap();
        }
        let daemon = start(&broker, tempfile::tempdir().unwrap(), &folder);
        let mut client = client(broker.port).await;
        client.subscribe(&format!("{BASE}/event/#")).await.unwrap();
        // The node subscribes for its rules before it says that it is ready.
        state(&mut client, "ready").await;
        Self {
            broker,
            daemon,
            rules: folder,
            client,
        }
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.rules.path().join(format!("{name}.toml")), text).unwrap();
    }

    fn remove(&self, name: &str) {
        std::fs::remove_file(self.rules.path().join(format!("{name}.toml"))).unwrap();
    }

    /// Publishes with QoS 1; the broker has it when this returns.
    async fn say(&mut self, topic: &str, payload: &str) {
        self.client
            .publish(topic, payload.to_owned(), None)
            .await
            .unwrap();
    }

    /// Readings of a machine.
    async fn read(&mut self, machine: &str, values: impl IntoIterator<Item = u32>) {
        for value in values {
            let topic = format!("plant/{machine}/temperature");
            self.say(&topic, &format!("{{\"temperature\":{value}}}")).await;
        }
    }

    /// The next event of a rule.
    async fn event(&mut self, rule: &str) -> Value {
        let topic = format!("{BASE}/event/{rule}");
        next(&mut self.client, rule, |message| {
            (message.topic == topic).then(|| json(message))
        })
        .await
    }

    /// Waits until the node counts as many messages in open windows.
    async fn held(&mut self, messages: u64) -> Value {
        let topic = format!("{BASE}/stats");
        self.client.subscribe(&topic).await.unwrap();
        next(&mut self.client, "messages in windows", |message| {
            let stats = json(message);
            (message.topic == topic && stats["rules"]["held"] == messages).then_some(stats)
        })
        .await
    }

    /// Waits until the node has acknowledged as many messages to the broker: they are in its store.
    ///
    /// Its counts are not enough: a message counts before the store's next commit.
    async fn stored(&self, messages: usize) {
        let log = self.broker.folder().join("mosquitto.log");
        eventually("messages in the store", || {
            // The tests' own clients have this process in their names.
            let own = format!("PUBACK from {NODE}-{}-", std::process::id());
            let log = std::fs::read_to_string(&log).unwrap();
            let of_node = |line: &&str| line.contains("Received PUBACK from") && !line.contains(&own);
            log.lines().filter(of_node).count() >= messages
        })
        .await;
    }

    /// Waits until the broker's log says it.
    async fn broker_says(&self, what: &str) {
        let log = self.broker.folder().join("mosquitto.log");
        eventually(what, || std::fs::read_to_string(&log).unwrap().contains(what)).await;
    }

    /// Waits until the daemon's log says it.
    async fn daemon_says(&self, what: &str) {
        eventually(what, || self.daemon.log().contains(what)).await;
    }

    /// Ends the daemon as a power cut does.
    fn kill(&mut self) -> TempDir {
        self.daemon.signal("KILL");
        self.daemon.wait();
        std::mem::replace(&mut self.daemon.folder, tempfile::tempdir().unwrap())
    }

    /// Starts it again with what it had.
    async fn start_again(&mut self, folder: TempDir) {
        self.daemon = start(&self.broker, folder, &self.rules);
        state(&mut self.client, "ready").await;
    }
}

fn start(broker: &Mosquitto, folder: TempDir, rules: &TempDir) -> Daemon {
    let rules = format!("node.rules_dir={}", rules.path().display());
    Daemon::start_in(folder, broker.port, &demo_model(), &[&rules])
}

/// Waits for what is not reported, such as a line in a log.
async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < TIMEOUT, "waited in vain for {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// The first, the last and the number of an event's values.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "small whole numbers, as the tests publish them"
)]
fn span(event: &Value) -> (u64, u64, u64) {
    let facts = &event["stats"]["temperature"];
    let whole = |key: &str| facts[key].as_f64().map_or(0, |value| value.round() as u64);
    assert_eq!(event["window"]["messages"], facts["count"], "{event}");
    (whole("first"), whole("last"), whole("count"))
}

/// A rule of facts alone over these topics, whose windows hold so many messages.
fn counting(topics: &str, messages: u32) -> String {
    format!(
        "topics = [{topics}]\nfields = {{ temperature = \"/temperature\" }}\nfacts_only = true\n\
         window = {{ kind = \"count\", messages = {messages} }}\n"
    )
}
