//! The access rules that come along, loaded into mosquitto: a client reaches what is its own.

#![allow(clippy::unwrap_used, missing_docs)]

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use phi_edge_mqtt::{Client, ClientOptions};
use phi_edge_tests::{BASE, Daemon, Mosquitto, demo_model, has_library, json, next};
use serde_json::json;

const USERS: [&str; 4] = ["phi-edge", "operator", "anna", "bert"];
/// Long enough for a message that is let through, on a busy machine.
const SILENCE: Duration = Duration::from_secs(2);

/// A broker with the rules and users, whose password is their name.
fn broker() -> Option<Mosquitto> {
    let rules = Path::new(env!("CARGO_MANIFEST_DIR")).join("../systemd/acl/mosquitto.acl");
    Mosquitto::with(
        "allow_anonymous false\npassword_file {folder}/users\nacl_file {folder}/acl\n",
        |folder| {
            std::fs::copy(&rules, folder.join("acl")).unwrap();
            let users = folder.join("users");
            std::fs::write(&users, "").unwrap();
            for user in USERS {
                let status = Command::new("mosquitto_passwd")
                    .arg("-b")
                    .arg(&users)
                    .args([user, user])
                    .status()
                    .unwrap();
                assert!(status.success());
            }
            // mosquitto requires that only its user can read both.
            for file in ["acl", "users"] {
                let file = folder.join(file);
                std::fs::set_permissions(file, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
            }
        },
    )
}

async fn log_in(broker: &Mosquitto, user: &str) -> Client {
    Client::connect(ClientOptions {
        host: "localhost".into(),
        port: broker.port,
        client_id: format!("{user}-{}", phi_edge_tests::unique()),
        credentials: Some((user.into(), user.into())),
        ..ClientOptions::default()
    })
    .await
    .unwrap()
}

/// Nothing comes about this request.
async fn nothing_about(client: &mut Client, id: &str) {
    // Two subscriptions that overlap may bring what is allowed twice.
    while let Some(message) = client.receive(SILENCE).await.unwrap() {
        assert_ne!(json(&message)["id"], id, "{}", message.topic);
    }
}

/// The first reply about this request, and where it came.
async fn reply(client: &mut Client, id: &str) -> (String, serde_json::Value) {
    next(client, id, |message| {
        let body = json(message);
        (body["id"] == id).then(|| (message.topic.clone(), body))
    })
    .await
}

#[tokio::test]
async fn a_client_reaches_only_what_is_its_own() {
    if !has_library() {
        return;
    }
    let Some(broker) = broker() else { return };
    let folder = tempfile::tempdir().unwrap();
    let password = folder.path().join("password");
    std::fs::write(&password, "phi-edge").unwrap();
    let password = format!("mqtt.password_file={}", password.display());
    let settings = ["mqtt.username=phi-edge", &password, "runtime.slots=1"];
    let _daemon = Daemon::start(broker.port, &demo_model(), &settings);
    let mut operator = log_in(&broker, "operator").await;
    phi_edge_tests::state(&mut operator, "ready").await;
    operator.subscribe(&format!("{BASE}/dead-letter")).await.unwrap();

    let mut anna = log_in(&broker, "anna").await;
    let mut bert = log_in(&broker, "bert").await;
    for (client, name) in [(&mut anna, "anna"), (&mut bert, "bert")] {
        client
            .subscribe(&format!("{BASE}/response/{name}/#"))
            .await
            .unwrap();
        // mosquitto grants the subscription and gives nothing: no other client's answers come by it.
        client.subscribe(&format!("{BASE}/response/#")).await.unwrap();
        client.subscribe(&format!("{BASE}/request/#")).await.unwrap();
    }

    // Her own: asked, answered, and seen by no other client.
    let body = json!({"id": "1", "prompt": "Who are you?"}).to_string();
    anna.publish(&format!("{BASE}/request/anna"), body, None)
        .await
        .unwrap();
    let answer = reply(&mut anna, "1").await;
    assert_eq!(answer.0, format!("{BASE}/response/anna/1"));
    assert!(answer.1["text"].is_string(), "{}", answer.1);
    nothing_about(&mut bert, "1").await;

    // In another's name, and on the shared topic, which these rules close.
    let body = json!({"id": "2", "prompt": "Who are you?"}).to_string();
    for topic in [format!("{BASE}/request/anna"), format!("{BASE}/request")] {
        // mosquitto takes the message, and says "not authorized", or nothing.
        let _ = bert.publish(&topic, body.clone(), None).await;
    }
    nothing_about(&mut anna, "2").await;

    // Replies aimed at another.
    let body = json!({"id": "3", "prompt": "Who are you?"}).to_string();
    let aim = format!("{BASE}/response/anna/3");
    bert.publish(&format!("{BASE}/request/bert"), body, Some((&aim, b"x")))
        .await
        .unwrap();
    let refusal = reply(&mut bert, "3").await;
    assert_eq!(refusal.0, format!("{BASE}/response/bert/3"));
    assert_eq!(refusal.1["error"]["code"], "bad_request");
    nothing_about(&mut anna, "3").await;

    // Cancelling another's: bert's cancel of the same id reaches his own only.
    let long = |id: &str| json!({"id": id, "prompt": "Summarise: oven 1 at 212 degrees, door 2 open.", "max_tokens": 200});
    anna.publish(&format!("{BASE}/request/anna"), long("4").to_string(), None)
        .await
        .unwrap();
    let _ = bert
        .publish(&format!("{BASE}/cancel/anna"), r#"{"id":"4"}"#, None)
        .await;
    bert.publish(&format!("{BASE}/cancel/bert"), r#"{"id":"4"}"#, None)
        .await
        .unwrap();
    let answer = reply(&mut anna, "4").await.1;
    assert_ne!(answer["finish_reason"], "cancelled", "{answer}");

    // Going on with another's conversation: the same name is another session.
    let said = |id: &str, prompt: &str| {
        json!({"id": id, "prompt": prompt, "session": "s", "max_tokens": 4}).to_string()
    };
    anna.publish(
        &format!("{BASE}/request/anna"),
        said("5", "My secret is 4711."),
        None,
    )
    .await
    .unwrap();
    let first = reply(&mut anna, "5").await.1;
    bert.publish(
        &format!("{BASE}/request/bert"),
        said("5", "My secret is 4711."),
        None,
    )
    .await
    .unwrap();
    let other = reply(&mut bert, "5").await.1;
    assert_eq!(first["usage"]["prompt_tokens"], other["usage"]["prompt_tokens"]);
}
