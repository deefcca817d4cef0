//! SIGHUP: limits and the log level change while the daemon runs, and what is wrong changes nothing.

#![allow(clippy::unwrap_used, missing_docs)]

use phi_edge_tests::{
    BASE, Daemon, Field, Mosquitto, client, demo_model, free_port, has_library, http, question,
};

#[tokio::test]
async fn limits_and_log_level_are_read_again() {
    if !has_library() {
        return;
    }
    let Some(broker) = Mosquitto::start() else { return };
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("phi-edge.toml");
    let config = format!("--config={}", file.display());
    std::fs::write(&file, "[limits]\nmax_tokens = 100\n").unwrap();
    let port = free_port();
    let listen = format!("metrics.listen=127.0.0.1:{port}");
    let daemon = Daemon::start(broker.port, &demo_model(), &[&config, &listen]);
    let mut field = Field::at(broker.port).await;
    field
        .listen_until("a ready daemon", |field| field.state() == "ready")
        .await;
    field.ask("before", question(60)).await;

    // Wrong: told, and nothing has changed.
    std::fs::write(&file, "[limits]\nmax_token = 8\n").unwrap();
    daemon.signal("HUP");
    field
        .listen_until("the fault", |_| {
            daemon.log().contains("the old one stays in effect")
        })
        .await;
    assert!(daemon.log().contains("max_tokens"), "the nearest key is told");
    field.ask("still", question(60)).await;

    std::fs::write(
        &file,
        "[limits]\nmax_tokens = 8\nmax_payload = \"2KiB\"\nqueue = 7\n",
    )
    .unwrap();
    daemon.signal("HUP");
    field
        .listen_until("the new limits", |field| {
            field.status()["limits"]["max_tokens"] == 8
        })
        .await;
    field.ask("after", question(60)).await;
    field.settle().await;
    assert_eq!(field.outcome("before")["error"], serde_json::Value::Null);
    assert_eq!(field.outcome("still")["error"], serde_json::Value::Null);
    assert_eq!(field.outcome("after")["error"]["code"], "bad_request");
    assert!(
        field.outcome("after")["error"]["message"]
            .as_str()
            .unwrap()
            .contains('8')
    );
    assert_eq!(field.status()["limits"]["max_payload"], 2048);
    assert_eq!(field.status()["limits"]["queue"], 7);
    let (_, metrics) = http(port, "GET /metrics HTTP/1.1\r\nHost: localhost").unwrap();
    assert!(metrics.contains("\nphi_edge_queue_limit 7\n"), "{metrics}");
}

#[tokio::test]
async fn a_changed_base_waits_for_a_restart() {
    if !has_library() {
        return;
    }
    let Some(broker) = Mosquitto::start() else { return };
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("phi-edge.toml");
    let config = format!("--config={}", file.display());
    let rule = |topic: &str| {
        format!(
            "[[rules]]\nname = \"two\"\ntopics = [\"{topic}\"]\nfacts_only = true\n\
             window = {{ kind = \"count\", messages = 2 }}\n"
        )
    };
    std::fs::write(&file, rule("plant/x")).unwrap();
    let daemon = Daemon::start(broker.port, &demo_model(), &[&config]);
    let mut field = Field::at(broker.port).await;
    field
        .listen_until("a ready daemon", |field| field.state() == "ready")
        .await;
    let mut events = client(broker.port).await;
    events.subscribe(&format!("{BASE}/event/#")).await.unwrap();

    let base = "[node]\nbase = \"other/base\"\n[limits]\nqueue = 9\n";
    std::fs::write(&file, format!("{base}{}", rule("{base}-/x"))).unwrap();
    daemon.signal("HUP");
    field
        .listen_until("the new limits", |field| field.status()["limits"]["queue"] == 9)
        .await;
    let log = daemon.log();
    let told = |key: &str| {
        log.lines()
            .filter(|line| line.contains("needs a restart") && line.contains(&format!("\"{key}\"")))
            .count()
    };
    assert_eq!((told("node.base"), told("mqtt.reply_topics")), (1, 1), "{log}");
    // Its events, its rules' topics and its requests stay below the base in effect.
    field
        .listen_until("the new rule", |_| {
            daemon.log().contains("the configuration is read again")
        })
        .await;
    let mut event = None;
    for _ in 0..1000 {
        field.publish(&format!("{BASE}-/x"), b"1".to_vec()).await;
        event = events
            .receive(std::time::Duration::from_millis(50))
            .await
            .unwrap();
        if event.is_some() {
            break;
        }
    }
    assert_eq!(event.unwrap().topic, format!("{BASE}/event/two"));
    field.ask("after", question(8)).await;
    field.settle().await;

    // What lies below it is refused, whatever the file's own base is.
    std::fs::write(&file, format!("{base}{}", rule(&format!("{BASE}/response/#")))).unwrap();
    daemon.signal("HUP");
    field
        .listen_until("the refusal", |_| {
            daemon.log().contains("the old one stays in effect")
        })
        .await;
    assert!(
        daemon.log().contains("below the node's own base"),
        "{}",
        daemon.log()
    );
}
