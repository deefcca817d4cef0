//! What the broker, or the path to it, will not take: it is given up, and all else goes on.

#![allow(clippy::unwrap_used, missing_docs)]

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use phi_edge_mqtt::{Client, ClientOptions};
use phi_edge_tests::{
    BASE, BrokerPath, Daemon, Lives, Mosquitto, client, demo_model, has_library, json, next, state,
};
use serde_json::{Value, json};

/// What the path refuses in these tests, in topic or payload.
const POISON: &str = "NIGHTSHADE";

/// mosquitto with the rules that come along, and users whose password is their name.
fn guarded(users: &[&str]) -> Option<Mosquitto> {
    let rules = Path::new(env!("CARGO_MANIFEST_DIR")).join("../systemd/acl/mosquitto.acl");
    Mosquitto::with(
        "allow_anonymous false\npassword_file {folder}/users\nacl_file {folder}/acl\n",
        |folder| {
            std::fs::copy(&rules, folder.join("acl")).unwrap();
            let file = folder.join("users");
            std::fs::write(&file, "").unwrap();
            for user in users {
                let mut command = Command::new("mosquitto_passwd");
                let status = command.arg("-b").arg(&file).args([user, user]).status().unwrap();
                assert!(status.success());
            }
            for file in ["acl", "users"] {
                let file = folder.join(file);
                std::fs::set_permissions(file, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
            }
        },
    )
}

async fn log_in(port: u16, user: &str) -> Client {
    Client::connect(ClientOptions {
        host: "localhost".into(),
        port,
        client_id: format!("{user}-{}", phi_edge_tests::unique()),
        credentials: Some((user.into(), user.into())),
        ..ClientOptions::default()
    })
    .await
    .unwrap()
}

/// The outcome of the request with this id.
async fn outcome(client: &mut Client, id: &str) -> Value {
    next(client, id, |message| {
        let body = json(message);
        (body["id"] == id && (body["text"].is_string() || body["error"].is_object())).then_some(body)
    })
    .await
}

/// The dead letter about this id.
async fn letter(client: &mut Client, id: &str) -> Value {
    next(client, id, |message| {
        let body = json(message);
        (message.topic.ends_with("/dead-letter") && body["id"] == id).then_some(body)
    })
    .await
}

/// The link's counters, once `wanted` says so.
async fn link(client: &mut Client, what: &str, mut wanted: impl FnMut(&Value) -> bool) -> Value {
    next(client, what, |message| {
        let link = json(message)["link"].take();
        (message.topic.ends_with("/stats") && wanted(&link)).then_some(link)
    })
    .await
}

#[tokio::test]
async fn a_reply_that_mosquitto_ends_the_connection_at_is_given_up() {
    if !has_library() {
        return;
    }
    let Some(broker) = guarded(&["phi-edge", "operator", "anna", "mallory"]) else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let password = folder.path().join("password");
    std::fs::write(&password, "phi-edge").unwrap();
    let password = format!("mqtt.password_file={}", password.display());
    // The check at the door is off: the quarantine is what holds.
    let settings = ["mqtt.username=phi-edge", &password, "mqtt.max_topic_levels=1000"];
    let daemon = Daemon::start(broker.port, &demo_model(), &settings);
    let mut operator = log_in(broker.port, "operator").await;
    state(&mut operator, "ready").await;
    for topic in ["dead-letter", "stats"] {
        operator.subscribe(&format!("{BASE}/{topic}")).await.unwrap();
    }
    let mut anna = log_in(broker.port, "anna").await;
    anna.subscribe(&format!("{BASE}/response/anna/#")).await.unwrap();
    let mut mallory = log_in(broker.port, "mallory").await;
    mallory
        .subscribe(&format!("{BASE}/response/mallory/#"))
        .await
        .unwrap();

    let deep = format!("{BASE}/response/mallory/{}x", "a/".repeat(300));
    let body = json!({"id": "m", "prompt": "Who are you?", "max_tokens": 4, "stream": true}).to_string();
    mallory
        .publish(
            &format!("{BASE}/request/mallory"),
            body.clone(),
            Some((&deep, b"c")),
        )
        .await
        .unwrap();
    for n in 0..8 {
        let id = format!("a{n}");
        let body = json!({"id": id, "prompt": "Who are you?", "max_tokens": 4}).to_string();
        anna.publish(&format!("{BASE}/request/anna"), body, None)
            .await
            .unwrap();
        assert!(outcome(&mut anna, &id).await["text"].is_string());
    }
    let letter = letter(&mut operator, "m").await;
    assert_eq!(letter["reason"], "undeliverable", "{letter}");
    assert_eq!((&letter["topic"], &letter["payload"]), (&json!(""), &json!("")));
    let message = letter["message"].as_str().unwrap();
    assert!(
        message.contains("mallory") && message.contains("306 levels"),
        "{message}"
    );
    assert!(!message.contains("a/a/"), "{message}");
    let seen = link(&mut operator, "the count", |link| link["undeliverable"] == 1).await;
    // The first connection, and at most five that ended.
    assert!(seen["connections"].as_u64().unwrap() <= 6, "{seen}");
    assert!(daemon.log().contains("a message can't be delivered"));

    // The outcome is there for a client that asks again where an answer can go.
    let near = format!("{BASE}/response/mallory/near");
    mallory
        .publish(&format!("{BASE}/request/mallory"), body, Some((&near, b"c")))
        .await
        .unwrap();
    let answer = outcome(&mut mallory, "m").await;
    assert!(answer["text"].is_string(), "{answer}");
}

#[tokio::test]
async fn whatever_the_path_ends_connections_at_is_given_up() {
    if !has_library() {
        return;
    }
    let Some(broker) = Mosquitto::start() else { return };
    let path = BrokerPath::start(broker.port);
    let rules = tempfile::tempdir().unwrap();
    for (name, qos) in [("once", 1), ("perhaps", 0)] {
        let rule = format!(
            "topics = [\"{name}/+\"]\ngroup_by = \"topic:1\"\nfields = {{ temperature = \"/temperature\" }}\n\
             template = \"demo-digest\"\nwindow = {{ kind = \"count\", messages = 1 }}\n\
             output = {{ topic = \"out/{{group}}\", qos = {qos} }}\n"
        );
        std::fs::write(rules.path().join(format!("{name}.toml")), rule).unwrap();
    }
    let rules = format!("node.rules_dir={}", rules.path().display());
    let daemon = Daemon::start(path.port, &demo_model(), &[&rules]);
    let mut client = client(broker.port).await;
    state(&mut client, "ready").await;
    for topic in ["dead-letter", "stats", "response/#"] {
        client.subscribe(&format!("{BASE}/{topic}")).await.unwrap();
    }
    client.subscribe("out/#").await.unwrap();
    path.poison(POISON.as_bytes());

    // A reply and its chunks by their topic; a dead letter by its payload; events by their topic.
    let request =
        |id: &str| json!({"id": id, "prompt": "Who are you?", "max_tokens": 8, "stream": true}).to_string();
    let aim = format!("{BASE}/response/{POISON}");
    client
        .publish(&format!("{BASE}/request"), request("reply"), Some((&aim, b"c")))
        .await
        .unwrap();
    client
        .publish(
            &format!("{BASE}/request"),
            format!("{{\"prompt\": \"{POISON}\", \"x\": 1}}"),
            None,
        )
        .await
        .unwrap();
    for rule in ["once", "perhaps"] {
        for group in [POISON, "oven"] {
            client
                .publish(&format!("{rule}/{group}"), r#"{"temperature": 20}"#, None)
                .await
                .unwrap();
        }
    }
    for n in 0..10 {
        let id = format!("honest-{n}");
        client
            .publish(&format!("{BASE}/request"), request(&id), None)
            .await
            .unwrap();
    }
    // In the order in which they happen to come.
    let (mut answers, mut events, mut letters, mut counted) = (0, 0, Vec::new(), 0);
    next(&mut client, "all of it", |message| {
        let body = json(message);
        let is = |tail: &str| message.topic.ends_with(tail);
        if is("/stats") {
            counted = body["link"]["undeliverable"].as_u64().unwrap();
        } else if is("/dead-letter") {
            assert_eq!(body["reason"], "undeliverable", "{body}");
            assert!(!body.to_string().contains(POISON), "{body}");
            letters.push(body["id"].clone());
        } else if message.topic == "out/oven" {
            events += 1;
        } else if body["text"].is_string() {
            assert!(!message.topic.contains(POISON));
            answers += 1;
        }
        (answers >= 10 && events >= 2 && letters.len() >= 4 && counted >= 4).then_some(())
    })
    .await;
    // Each once: a reply, two events, and a dead letter, which is followed by one that quotes nothing.
    assert_eq!((letters.len(), counted), (4, 4), "{letters:?}");
    assert!(path.deaths() <= 5 * 4, "{} connections ended", path.deaths());
    assert!(!daemon.log().contains("took over"));
}

#[tokio::test]
async fn a_flapping_path_convicts_no_message() {
    if !has_library() {
        return;
    }
    let Some(broker) = Mosquitto::start() else { return };
    let path = BrokerPath::start(broker.port);
    let _daemon = Daemon::start(path.port, &demo_model(), &[]);
    let mut client = client(broker.port).await;
    state(&mut client, "ready").await;
    for topic in ["dead-letter", "stats", "response/#"] {
        client.subscribe(&format!("{BASE}/{topic}")).await.unwrap();
    }
    // Few, as each death may cost a wait; the simulation in `link/quarantine/tests.rs` has thousands, of all kinds.
    let lives = [
        (12, Lives::Packets(|number| 5 + number * 7 % 13)),
        (
            4,
            Lives::Time(|number| Duration::from_millis(u64::from(300 + number * 37 % 400))),
        ),
    ];
    let mut asked = 0;
    let mut seen = BTreeSet::new();
    for (deaths, lives) in lives {
        path.lives(Some(lives));
        path.cut();
        let until = path.deaths() + deaths;
        while path.deaths() < until {
            let ids: Vec<String> = (0..8).map(|n| format!("r{}", asked + n)).collect();
            asked += 8;
            for id in &ids {
                let body = json!({"id": id, "prompt": "Who are you?", "max_tokens": 2}).to_string();
                client
                    .publish(&format!("{BASE}/request"), body, None)
                    .await
                    .unwrap();
            }
            let mut open = ids.len();
            next(&mut client, "the answers", |message| {
                let body = json(message);
                assert!(!message.topic.ends_with("/dead-letter"), "{body}");
                let is_new = body["text"].is_string() && ids.iter().any(|id| body["id"] == *id);
                open -= usize::from(is_new && seen.insert(body["id"].to_string()));
                (open == 0).then_some(())
            })
            .await;
        }
    }
    path.lives(None);
    // Not every death was a connection's: on a busy machine some end before the broker's acknowledgement.
    let before = link(&mut client, "the count so far", |_| true).await;
    path.cut();
    let link = link(&mut client, "the count of one more", |link| {
        link["connections"].as_u64() > before["connections"].as_u64()
    })
    .await;
    assert_eq!(link["undeliverable"], 0, "{link}");
}
