//! SIGHUP: limits and the log level change while the daemon runs, and what is wrong changes nothing.

#![allow(clippy::unwrap_used, missing_docs)]

use phi_edge_tests::{Daemon, Field, Mosquitto, demo_model, free_port, has_library, http, question};

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
