//! The audit, and traces that go through.

#![allow(clippy::unwrap_used, missing_docs)]

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use phi_edge_tests::{BASE, Daemon, Mosquitto, TIMEOUT, client, demo_model, has_library, json, next, state};
use serde_json::Value;

const TRACE: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

/// Sends a request that is part of a trace; gives the log and the lines of the audit, once there are two.
async fn audited(settings: &[&str]) -> Option<(String, Vec<Value>)> {
    if !has_library() {
        return None;
    }
    let broker = Mosquitto::start()?;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("audit.jsonl");
    let path = format!("audit.path={}", file.display());
    let settings: Vec<&str> = settings.iter().copied().chain([path.as_str()]).collect();
    let daemon = Daemon::start(broker.port, &demo_model(), &settings);
    let mut client = client(broker.port).await;
    state(&mut client, "ready").await;
    client.subscribe(&format!("{BASE}/response/#")).await.unwrap();
    for (id, more) in [("good", ""), ("bad", r#","max_tokens":0"#)] {
        let status = Command::new("mosquitto_pub")
            .args(["-p", &broker.port.to_string(), "-V", "mqttv5", "-q", "1"])
            .args(["-t", &format!("{BASE}/request/till-3")])
            .args(["-D", "publish", "user-property", "traceparent", TRACE])
            .args([
                "-m",
                &format!(r#"{{"id":"{id}","prompt":"Who is Rumpelstiltskin?"{more}}}"#),
            ])
            .status()
            .unwrap();
        assert!(status.success());
        let trace = next(&mut client, id, |message| {
            let outcome = matches!(message.property("kind"), Some("final" | "error"));
            (outcome && json(message)["id"] == id).then(|| message.property("traceparent").map(str::to_owned))
        })
        .await;
        assert_eq!(trace.as_deref(), Some(TRACE), "{id}");
    }
    Some((daemon.log(), lines(&file)))
}

fn lines(file: &Path) -> Vec<Value> {
    let deadline = Instant::now() + TIMEOUT;
    loop {
        let text = std::fs::read_to_string(file).unwrap();
        let lines: Vec<Value> = text
            .lines()
            .filter_map(|line| serde_json::from_str(line).ok())
            .collect();
        if lines.len() >= 2 {
            return lines;
        }
        assert!(Instant::now() < deadline, "{text}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[tokio::test]
async fn a_line_says_who_when_and_how_much_and_not_what() {
    let Some((log, lines)) = audited(&[]).await else {
        return;
    };
    let job = &lines[0];
    for (field, value) in [
        ("kind", "job"),
        ("client", "till-3"),
        ("id", "good"),
        ("source", "client"),
        ("priority", "normal"),
        ("traceparent", TRACE),
        ("node", "test"),
    ] {
        assert_eq!(job[field], value, "{field} of {job}");
    }
    assert!(job["finish_reason"].is_string() && job["error"].is_null());
    assert!(job["prompt_tokens"].as_u64() > Some(0) && job["completion_tokens"].as_u64() > Some(0));
    assert!(job["request_bytes"].as_u64() > Some(30), "{job}");
    assert!(job["took_ms"].is_u64() && job["queued_ms"].is_u64());
    assert_eq!(job["model_digest"].as_str().map(str::len), Some(64), "{job}");
    assert_eq!(
        (&lines[1]["kind"], &lines[1]["error"]),
        (&"refused".into(), &"bad_request".into())
    );
    assert_eq!(lines[1]["traceparent"], TRACE, "{}", lines[1]);
    let all = lines.iter().map(Value::to_string).collect::<String>();
    assert!(!all.contains("Rumpelstiltskin") && job["answer"].is_null());
    assert!(!log.contains("Rumpelstiltskin"), "the log holds a prompt");
    let trace = log
        .lines()
        .filter(|line| line.contains("4bf92f3577b34da6a3ce929d0e0e4736"));
    assert!(trace.count() >= 2, "the job's lines of the log have its trace");
}

/// A disk that is full costs lines, not jobs.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_full_disk_holds_up_no_job() {
    if !has_library() {
        return;
    }
    let Some(broker) = Mosquitto::start() else { return };
    let daemon = Daemon::start(broker.port, &demo_model(), &["audit.path=/dev/full"]);
    let mut client = client(broker.port).await;
    state(&mut client, "ready").await;
    client.subscribe(&format!("{BASE}/response/#")).await.unwrap();
    for id in ["1", "2", "3"] {
        let request = format!(r#"{{"id":"{id}","prompt":"Hello","max_tokens":4}}"#);
        client
            .publish(&format!("{BASE}/request"), request, None)
            .await
            .unwrap();
        next(&mut client, id, |message| {
            let body = json(message);
            (message.property("kind") == Some("final") && body["id"] == id).then_some(())
        })
        .await;
    }
    let said = || daemon.log().matches("the audit can't be written").count();
    let deadline = Instant::now() + TIMEOUT;
    while said() == 0 {
        assert!(Instant::now() < deadline, "no report that lines are lost");
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(said(), 1, "once, not for each line");
}

#[tokio::test]
async fn texts_are_there_for_who_wants_them() {
    let Some((_, lines)) = audited(&["audit.texts=true"]).await else {
        return;
    };
    assert!(
        lines[0]["prompt"]
            .as_str()
            .unwrap()
            .contains("Who is Rumpelstiltskin?")
    );
    assert!(!lines[0]["answer"].as_str().unwrap().is_empty());
    assert!(lines[1]["message"].is_string());
}
