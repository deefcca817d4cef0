//! What a node does when there is little to do, and when it had better do less: unloads the model, slows down.

#![allow(clippy::unwrap_used, missing_docs)]

use std::path::Path;
use std::time::Instant;

use phi_edge_mqtt::{Client, ClientOptions};
use phi_edge_tests::{BASE, Daemon, Field, Mosquitto, TIMEOUT, demo_model, has_library, question};
use serde_json::Value;

/// Listens to the node's numbers.
struct Numbers(Client);

impl Numbers {
    async fn of(port: u16) -> Self {
        let options = ClientOptions {
            host: "localhost".into(),
            port,
            client_id: "numbers".into(),
            credentials: None,
            tls: None,
            session: None,
        };
        let mut client = Client::connect(options).await.unwrap();
        client.subscribe(&format!("{BASE}/stats")).await.unwrap();
        Self(client)
    }

    /// Waits until they are as wanted.
    async fn until(&mut self, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let begun = Instant::now();
        let mut last = Value::Null;
        while begun.elapsed() < TIMEOUT {
            let left = TIMEOUT.saturating_sub(begun.elapsed());
            if let Ok(Some(message)) = self.0.receive(left).await {
                last = serde_json::from_slice(&message.payload).unwrap();
                if wanted(&last) {
                    return last;
                }
            }
        }
        panic!("waited in vain for {what}; the last numbers: {last}");
    }
}

#[tokio::test]
async fn a_model_that_nobody_needs_is_unloaded_and_comes_back_for_a_request() {
    if !has_library() {
        return;
    }
    let Some(broker) = Mosquitto::start() else { return };
    let mut numbers = Numbers::of(broker.port).await;
    let daemon = Daemon::start(broker.port, &demo_model(), &["runtime.unload_after=1s"]);
    let mut field = Field::at(broker.port).await;
    field
        .listen_until("a ready daemon", |field| field.state() == "ready")
        .await;
    let mut greedy = question(20);
    greedy["temperature"] = 0.into();
    field.ask("first", greedy.clone()).await;
    field.settle().await;
    let idle = |stats: &Value| stats["model"]["loaded"] == false && stats["served"] == 1;
    let unloaded = numbers.until("an unloaded model", idle).await;
    let loads = unloaded["model"]["loads"].as_u64();
    assert_eq!(field.state(), "ready", "it takes requests nevertheless");
    // The same question: what it is answered does not depend on what the engine remembered.
    field.ask("second", greedy).await;
    field.settle().await;
    let text = |id: &str| field.outcome(id)["text"].clone();
    assert!(text("first").is_string(), "{}", daemon.log());
    assert_eq!(text("first"), text("second"));
    numbers
        .until("another load", |stats| stats["model"]["loads"].as_u64() > loads)
        .await;
}

/// A pull that takes the place of the loaded model's folder must not mix two models: the daemon restarts.
#[cfg(unix)]
#[tokio::test]
async fn a_model_that_was_replaced_while_it_was_unloaded_is_loaded_by_the_next_start() {
    if !has_library() {
        return;
    }
    let Some(broker) = Mosquitto::start() else { return };
    let models = tempfile::tempdir().unwrap();
    let (link, place, other) = (
        models.path().join("model"),
        models.path().join("one"),
        models.path().join("other"),
    );
    for folder in [&place, &other] {
        std::fs::create_dir(folder).unwrap();
        for file in std::fs::read_dir(demo_model()).unwrap() {
            let file = file.unwrap();
            std::fs::copy(file.path(), folder.join(file.file_name())).unwrap();
        }
    }
    std::os::unix::fs::symlink(&place, &link).unwrap();
    let mut numbers = Numbers::of(broker.port).await;
    let settings = ["runtime.unload_after=1s"];
    let mut daemon = Daemon::start(broker.port, &link, &settings);
    let mut field = Field::at(broker.port).await;
    field
        .listen_until("a ready daemon", |field| field.state() == "ready")
        .await;
    let idle = |stats: &Value| stats["model"]["loaded"] == false;
    numbers.until("an unloaded model", idle).await;

    // Another one is used from the next start on; this daemon keeps its own.
    std::fs::remove_file(&link).unwrap();
    std::os::unix::fs::symlink(&other, &link).unwrap();
    field.ask("kept", question(20)).await;
    field.settle().await;
    assert!(field.outcome("kept")["text"].is_string(), "{}", daemon.log());
    let idle_again = |stats: &Value| stats["model"]["loaded"] == false && stats["served"] == 1;
    numbers.until("a model unloaded again", idle_again).await;

    // As a pull does it.
    std::fs::rename(&place, models.path().join("one.previous")).unwrap();
    std::fs::rename(&other, &place).unwrap();
    std::fs::remove_file(&link).unwrap();
    std::os::unix::fs::symlink(&place, &link).unwrap();
    field.ask("waits", question(20)).await;
    assert_eq!(daemon.wait().code(), Some(1), "{}", daemon.log());
    let log = daemon.log();
    assert!(
        log.contains("the model directory was replaced; restarting to load the new one"),
        "{log}"
    );
    let daemon = Daemon::start_in(daemon.kill(), broker.port, &link, &settings);
    field.settle().await;
    assert!(field.outcome("waits")["text"].is_string(), "{}", daemon.log());
    assert!(
        !daemon.log().contains("the process before this one crashed"),
        "{}",
        daemon.log()
    );
}

/// A rule's window that ends at a known time finds the model loaded: it was woken for it.
#[tokio::test]
async fn a_model_is_loaded_ahead_of_a_window_that_it_has_to_word() {
    if !has_library() {
        return;
    }
    let Some(broker) = Mosquitto::start() else { return };
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("phi-edge.toml");
    let rule = "[[rules]]\nname = \"oven\"\ntopics = [\"oven/#\"]\nprompt = \"Summarise.\"\nmax_tokens = 8\n\
                window = { kind = \"session\", gap = \"4s\" }\n";
    std::fs::write(&file, rule).unwrap();
    let config = format!("--config={}", file.display());
    let daemon = Daemon::start(broker.port, &demo_model(), &[&config, "runtime.unload_after=1s"]);
    let mut field = Field::at(broker.port).await;
    field
        .listen_until("the rule's subscription", |field| {
            field.state() == "ready" && daemon.log().contains("the model is unloaded")
        })
        .await;
    field.publish("oven/1", b"{\"t\": 212}".to_vec()).await;
    field
        .listen_until("a loaded model", |_| {
            daemon.log().contains("the model is loaded again")
        })
        .await;
    field
        .listen_until("the rule's prompt", |_| daemon.log().contains("job accepted"))
        .await;
    let log = daemon.log();
    assert!(
        log.find("the model is loaded again") < log.find("job accepted"),
        "{log}"
    );
}

fn zone(root: &Path, millidegrees: &str) {
    let zone = root.join("class/thermal/thermal_zone0");
    std::fs::create_dir_all(&zone).unwrap();
    std::fs::write(zone.join("type"), "cpu\n").unwrap();
    // In one piece, as the kernel gives it: half a number is another number.
    std::fs::write(root.join("new"), format!("{millidegrees}\n")).unwrap();
    std::fs::rename(root.join("new"), zone.join("temp")).unwrap();
}

#[tokio::test]
async fn heat_slows_a_node_down_and_coolness_lets_it_go() {
    if !has_library() {
        return;
    }
    let Some(broker) = Mosquitto::start() else { return };
    let tree = tempfile::tempdir().unwrap();
    zone(tree.path(), "60000");
    let sysfs = format!("runtime.pace.sysfs={}", tree.path().display());
    let settings = [
        sysfs.as_str(),
        "runtime.pace.max_temperature=80",
        "runtime.pace.least_share=30",
        "runtime.pace.every=100ms",
    ];
    let mut numbers = Numbers::of(broker.port).await;
    let daemon = Daemon::start(broker.port, &demo_model(), &settings);
    let cool = numbers
        .until("a cool node", |stats| stats["pace"]["share"] == 100)
        .await;
    assert_eq!(cool["pace"]["reason"], Value::Null);
    assert_eq!(cool["temperatures"][0]["celsius"], 60.0);
    zone(tree.path(), "91000");
    let hot = numbers
        .until("a slow node", |stats| stats["pace"]["share"] == 30)
        .await;
    assert_eq!(hot["pace"]["reason"], "heat");
    // Slow, not gone.
    let mut field = Field::at(broker.port).await;
    field.ask("hot", question(20)).await;
    field.settle().await;
    assert!(field.outcome("hot")["text"].is_string(), "{}", daemon.log());
    zone(tree.path(), "60000");
    numbers
        .until("a node at full speed", |stats| stats["pace"]["share"] == 100)
        .await;
    assert!(
        daemon.log().contains("the engine is no longer throttled"),
        "{}",
        daemon.log()
    );
}
