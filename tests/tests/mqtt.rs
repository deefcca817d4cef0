//! The daemon at Debian's mosquitto, as clients in the field use it.

#![allow(clippy::unwrap_used, missing_docs)]

use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};

use phi_edge_mqtt::Client;
use phi_edge_tests::{
    BASE, Daemon, Mosquitto, client, demo_model, fixture, has_library, json, next, skip, state,
};
use serde_json::{Value, json};

/// A broker, the daemon on the demonstration model, ready, and a client.
async fn ready(settings: &[&str]) -> Option<(Mosquitto, Daemon, Client)> {
    if !has_library() {
        return None;
    }
    let broker = Mosquitto::start()?;
    let daemon = Daemon::start(broker.port, &demo_model(), settings);
    let mut client = client(broker.port).await;
    state(&mut client, "ready").await;
    Some((broker, daemon, client))
}

async fn replies(client: &mut Client) {
    client.subscribe(&format!("{BASE}/response/#")).await.unwrap();
}

async fn request(client: &mut Client, body: &Value) {
    client
        .publish(&format!("{BASE}/request"), body.to_string(), None)
        .await
        .unwrap();
}

/// The next final reply or error of `id`.
async fn outcome(client: &mut Client, id: &str) -> Value {
    next(client, id, |message| {
        let body = json(message);
        let reply = matches!(message.property("kind"), Some("final" | "error"));
        (reply && body["id"] == id).then_some(body)
    })
    .await
}

#[tokio::test]
async fn mosquitto_rr_gets_its_answer_and_its_correlation_data() {
    let Some((broker, _daemon, _)) = ready(&[]).await else {
        return;
    };
    let output = Command::new("mosquitto_rr")
        .args([
            "-p",
            &broker.port.to_string(),
            "-V",
            "mqttv5",
            "-q",
            "1",
            "-W",
            "60",
        ])
        .args([
            "-t",
            &format!("{BASE}/request"),
            "-e",
            &format!("{BASE}/response/rr"),
        ])
        .args([
            "-D",
            "publish",
            "correlation-data",
            "order-66",
            "-m",
            "Who are you?",
            "-F",
            "%D|%C|%P|%p",
        ])
        .output()
        .unwrap();
    let line = String::from_utf8(output.stdout).unwrap();
    let parts: Vec<&str> = line.trim().splitn(4, '|').collect();
    assert_eq!(parts[0], "order-66", "{line}");
    assert_eq!(parts[1], "application/json");
    assert_eq!(parts[2], "kind:final");
    let reply: Value = serde_json::from_str(parts[3]).unwrap();
    assert_eq!(reply["finish_reason"], "stop");
    assert!(
        reply["text"].as_str().unwrap().contains("demonstration model"),
        "{reply}"
    );
    assert!(reply["usage"]["prompt_tokens"].as_u64().unwrap() > 0);
}

#[tokio::test]
async fn paho_streams_an_answer() {
    let Some((broker, _daemon, _)) = ready(&[]).await else {
        return;
    };
    let Some(python) = std::env::var_os("PHI_EDGE_TEST_PYTHON") else {
        return skip("no Python with paho: run cargo xtask test");
    };
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/clients/paho_stream.py");
    let output = Command::new(python)
        .arg(script)
        .args([broker.port.to_string(), BASE.to_owned()])
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

#[tokio::test]
async fn a_client_of_mqtt_3_finds_its_answer_by_the_id() {
    let Some((broker, _daemon, mut client)) = ready(&[]).await else {
        return;
    };
    replies(&mut client).await;
    let status = Command::new("mosquitto_pub")
        .args(["-p", &broker.port.to_string(), "-V", "mqttv311", "-q", "1"])
        .args(["-t", &format!("{BASE}/request/till-3")])
        .args(["-m", r#"{"id":"a.1","prompt":"Hello","max_tokens":5}"#])
        .status()
        .unwrap();
    assert!(status.success());
    let topic = next(&mut client, "the answer", |m| {
        (json(m)["id"] == "a.1").then(|| m.topic.clone())
    })
    .await;
    assert_eq!(topic, format!("{BASE}/response/till-3/a.1"));
}

#[tokio::test]
async fn chunks_add_up_to_the_final_text() {
    let Some((_broker, _daemon, mut client)) = ready(&[]).await else {
        return;
    };
    replies(&mut client).await;
    request(
        &mut client,
        &json!({"id":"s","prompt":"Was kannst du?","stream":true}),
    )
    .await;
    let mut text = String::new();
    let mut seq = 0;
    let last = next(&mut client, "the final reply", |message| {
        let body = json(message);
        if message.property("kind") == Some("chunk") {
            assert_eq!(
                (body["seq"].as_u64(), body["attempt"].as_u64()),
                (Some(seq), Some(1))
            );
            seq += 1;
            text.push_str(body["delta"].as_str().unwrap());
        }
        (message.property("kind") == Some("final")).then_some(body)
    })
    .await;
    assert_eq!(last["text"], text);
    assert!(seq > 0);
}

#[tokio::test]
async fn a_running_answer_can_be_cancelled() {
    let Some(model) = fixture("phi3-mini-tiny-int4") else {
        return;
    };
    if !has_library() {
        return;
    }
    let Some(broker) = Mosquitto::start() else { return };
    let _daemon = Daemon::start(broker.port, &model, &[]);
    let mut client = client(broker.port).await;
    state(&mut client, "ready").await;
    replies(&mut client).await;
    request(
        &mut client,
        &json!({"id":"c","prompt":"x","max_tokens":1900,"stream":true}),
    )
    .await;
    next(&mut client, "a chunk", |m| {
        (m.property("kind") == Some("chunk")).then_some(())
    })
    .await;
    let cancel = format!("{BASE}/cancel");
    client.publish(&cancel, r#"{"id":"c"}"#, None).await.unwrap();
    let last = outcome(&mut client, "c").await;
    assert_eq!(last["finish_reason"], "cancelled");
    assert!(last["usage"]["completion_tokens"].as_u64().unwrap() < 1900);
}

#[tokio::test]
async fn a_restart_of_the_broker_costs_no_answer() {
    let Some(model) = fixture("phi3-mini-tiny-int4") else {
        return;
    };
    if !has_library() {
        return;
    }
    let Some(mut broker) = Mosquitto::start() else {
        return;
    };
    // One slot: "next" is answered after "long", so both final replies follow the restart.
    let mut daemon = Daemon::start(broker.port, &model, &["runtime.slots=1"]);
    let mut first = client(broker.port).await;
    state(&mut first, "ready").await;
    replies(&mut first).await;
    // A session that the broker keeps over its restart: what comes meanwhile waits for it.
    let listener = || {
        let mut command = Command::new("mosquitto_sub");
        command
            .args([
                "-p",
                &broker.port.to_string(),
                "-V",
                "mqttv311",
                "-i",
                "keeper",
                "-c",
                "-q",
                "1",
            ])
            .args(["-t", &format!("{BASE}/response/#")]);
        command
    };
    assert!(
        listener().arg("-E").status().unwrap().success(),
        "mosquitto_sub subscribes"
    );
    request(
        &mut first,
        &json!({"id":"long","prompt":"x","max_tokens":1500,"stream":true}),
    )
    .await;
    request(&mut first, &json!({"id":"next","prompt":"y","max_tokens":5})).await;
    next(&mut first, "a chunk", |m| {
        (m.property("kind") == Some("chunk")).then_some(())
    })
    .await;
    let mut listener = listener();
    broker.stop();
    broker.start_again();
    let mut listener = listener
        .arg("-W")
        .arg("60")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(listener.stdout.take().unwrap()).lines();
    let mut ids: Vec<String> = lines
        .map(|line| serde_json::from_str::<Value>(&line.unwrap()).unwrap())
        .filter(|body| body.get("delta").is_none())
        .inspect(|body| assert!(body["text"].is_string(), "{body}"))
        .map(|body| body["id"].as_str().unwrap().to_owned())
        .take(2)
        .collect();
    listener.kill().unwrap();
    listener.wait().unwrap();
    ids.sort();
    assert_eq!(ids, ["long", "next"]);
    assert!(daemon.runs());
    let mut second = client(broker.port).await;
    state(&mut second, "ready").await;
}

#[tokio::test]
async fn refusals_say_what_is_wrong() {
    let Some((_broker, _daemon, mut client)) =
        ready(&["limits.max_payload=2KiB", "limits.max_tokens=100"]).await
    else {
        return;
    };
    replies(&mut client).await;
    client.subscribe(&format!("{BASE}/dead-letter")).await.unwrap();
    let topic = format!("{BASE}/request");
    let answer = format!("{BASE}/response/here");
    let long = "x".repeat(3000);
    for (payload, code, says) in [
        (r#"{"prompt":3}"#, "bad_request", "prompt"),
        (r#"{"prompt":"x","max_tokens":101}"#, "bad_request", "1 to 100"),
        (
            r#"{"prompt":"x","response_format":{"type":"regex"}}"#,
            "unsupported",
            "response_format",
        ),
        ("{broken", "bad_request", "line 1"),
        (long.as_str(), "too_large", "2048"),
    ] {
        client
            .publish(
                &topic,
                payload.to_owned(),
                Some((&answer, &payload.as_bytes()[..4])),
            )
            .await
            .unwrap();
        let (body, data) = next(&mut client, code, |message| {
            (message.property("kind") == Some("error")).then(|| (json(message), message.correlation.clone()))
        })
        .await;
        assert_eq!(body["error"]["code"], code, "{body}");
        assert!(
            body["error"]["message"].as_str().unwrap().contains(says),
            "{body}"
        );
        assert_eq!(data.as_deref(), payload.as_bytes().get(..4));
    }
    // No address for a reply: a dead letter.
    client.publish(&topic, "{broken", None).await.unwrap();
    let letter = next(&mut client, "a dead letter", |m| {
        m.topic.ends_with("/dead-letter").then(|| json(m))
    })
    .await;
    assert_eq!(letter["payload"], "{broken");
    // A topic that is not allowed: a dead letter, and an error where the id leads.
    client
        .publish(&topic, r#"{"id":"mis","prompt":"x"}"#, Some(("elsewhere/x", b"")))
        .await
        .unwrap();
    let error = outcome(&mut client, "mis").await;
    assert!(
        error["error"]["message"]
            .as_str()
            .unwrap()
            .contains("elsewhere/x"),
        "{error}"
    );
}

#[tokio::test]
async fn a_prompt_longer_than_the_context_is_told_with_the_numbers() {
    let Some((_broker, _daemon, mut client)) = ready(&[]).await else {
        return;
    };
    replies(&mut client).await;
    request(&mut client, &json!({"id":"long","prompt":"word ".repeat(3000)})).await;
    let error = outcome(&mut client, "long").await;
    assert_eq!(error["error"]["code"], "context_overflow");
    assert!(
        error["error"]["message"].as_str().unwrap().contains("2048"),
        "{error}"
    );
}

#[tokio::test]
async fn a_full_queue_is_busy_and_says_when_to_return() {
    let Some(model) = fixture("phi3-mini-tiny-int4") else {
        return;
    };
    if !has_library() {
        return;
    }
    let Some(broker) = Mosquitto::start() else { return };
    let _daemon = Daemon::start(broker.port, &model, &["limits.queue=1", "runtime.slots=1"]);
    let mut client = client(broker.port).await;
    state(&mut client, "ready").await;
    replies(&mut client).await;
    for n in 0..4 {
        request(
            &mut client,
            &json!({"id":format!("q{n}"),"prompt":"x","max_tokens":1000}),
        )
        .await;
    }
    let busy = next(&mut client, "busy", |m| {
        let body = json(m);
        (body["error"]["code"] == "busy").then_some(body)
    })
    .await;
    assert!(busy["error"]["retry_after_ms"].as_u64().unwrap() > 0, "{busy}");
    outcome(&mut client, "q0").await;
}

#[tokio::test]
async fn retained_requests_are_refused_once() {
    let Some((broker, _daemon, mut client)) = ready(&[]).await else {
        return;
    };
    replies(&mut client).await;
    let status = Command::new("mosquitto_pub")
        .args([
            "-p",
            &broker.port.to_string(),
            "-q",
            "1",
            "-r",
            "-t",
            &format!("{BASE}/request"),
        ])
        .args(["-m", r#"{"id":"r","prompt":"x"}"#])
        .status()
        .unwrap();
    assert!(status.success());
    let error = outcome(&mut client, "r").await;
    assert!(
        error["error"]["message"].as_str().unwrap().contains("retained"),
        "{error}"
    );
}

#[tokio::test]
async fn repeats_get_the_same_reply_and_other_bodies_an_error() {
    let Some((_broker, _daemon, mut client)) = ready(&[]).await else {
        return;
    };
    replies(&mut client).await;
    let body = json!({"id":"twice","prompt":"Hello"});
    request(&mut client, &body).await;
    let first = outcome(&mut client, "twice").await;
    request(&mut client, &body).await;
    assert_eq!(outcome(&mut client, "twice").await, first);
    request(&mut client, &json!({"id":"twice","prompt":"Hello again"})).await;
    assert_eq!(
        outcome(&mut client, "twice").await["error"]["code"],
        "bad_request"
    );
}

#[tokio::test]
async fn a_message_that_expires_in_the_queue_is_not_started() {
    let Some(model) = fixture("phi3-mini-tiny-int4") else {
        return;
    };
    if !has_library() {
        return;
    }
    let Some(broker) = Mosquitto::start() else { return };
    let _daemon = Daemon::start(broker.port, &model, &["runtime.slots=1"]);
    let mut client = client(broker.port).await;
    state(&mut client, "ready").await;
    replies(&mut client).await;
    request(&mut client, &json!({"id":"first","prompt":"x","max_tokens":1900})).await;
    request(&mut client, &json!({"id":"late","prompt":"x","deadline_ms":1})).await;
    assert_eq!(outcome(&mut client, "late").await["error"]["code"], "expired");
}

#[tokio::test]
async fn a_killed_daemon_is_offline_and_comes_back() {
    let Some((broker, daemon, mut client)) = ready(&[]).await else {
        return;
    };
    let folder = daemon.kill();
    let status = next(&mut client, "the will", |m| {
        let status = json(m);
        (status["state"] == "offline").then_some(status)
    })
    .await;
    assert_eq!(status["reason"], "connection lost");
    // What is asked meanwhile waits in the broker.
    replies(&mut client).await;
    request(&mut client, &json!({"id":"meanwhile","prompt":"Hello"})).await;
    let _daemon = Daemon::start_in(folder, broker.port, &demo_model(), &[]);
    assert!(outcome(&mut client, "meanwhile").await["text"].is_string());
}

#[tokio::test]
async fn top_and_store_tell_how_a_node_is() {
    let Some((broker, mut daemon, mut client)) = ready(&[]).await else {
        return;
    };
    replies(&mut client).await;
    request(&mut client, &json!({"id": "1", "prompt": "Who are you?"})).await;
    outcome(&mut client, "1").await;
    let run = |arguments: &[&str]| {
        let output = Command::new(phi_edge_tests::phi_edge())
            .args(arguments)
            .output()
            .unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (output.status.code(), text(output.stdout), text(output.stderr))
    };
    let url = format!("mqtt://localhost:{}", broker.port);
    let (code, text, _) = run(&["top", "--once", "--broker", &url]);
    assert_eq!(code, Some(0));
    let node: Vec<&str> = text.lines().nth(1).unwrap().split_whitespace().collect();
    assert_eq!(&node[..2], ["test", "ready"], "{text}");

    let path = format!("store.path={}", daemon.folder.path().display());
    let (code, _, error) = run(&["store", "show", "--set", &path]);
    assert_eq!(code, Some(1));
    assert!(error.contains("stop the daemon first"), "{error}");
    daemon.signal("TERM");
    assert!(daemon.wait().success());
    let (_, text, _) = run(&["store", "show", "--set", &path]);
    assert!(text.contains("requests to be answered: 0"), "{text}");
    assert!(text.contains("outcomes that are kept:  1"), "{text}");
    let (_, text, _) = run(&["store", "purge-outcomes", "--set", &path]);
    assert_eq!(text, "1 outcomes are forgotten\n");
    let (code, _, error) = run(&["store", "show", "--set", "store.path=/nowhere"]);
    assert_eq!(code, Some(78), "{error}");
}
