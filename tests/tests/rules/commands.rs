//! `phi-edge rules` as its user types it.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Command, Output, Stdio};

use phi_edge_tests::{Mosquitto, client, demo_model, has_library, phi_edge};
use serde_json::Value;

use super::DIGEST;

fn rules(folder: &Path, arguments: &[&str]) -> Output {
    Command::new(phi_edge())
        .arg("rules")
        .args(arguments)
        .args(["--set", &format!("node.rules_dir={}", folder.display())])
        .output()
        .unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[test]
fn lint_names_the_file_the_key_and_the_fault() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("digest.toml"), DIGEST).unwrap();
    let output = rules(folder.path(), &["lint"]);
    let said = text(&output.stdout);
    assert!(output.status.success(), "{said}{}", text(&output.stderr));
    assert!(
        said.contains("ok     digest: count windows over plant/+/temperature"),
        "{said}"
    );
    for (bad, says) in [
        (
            DIGEST.replace("temperature = \"/t", "celsius = \"/t") + "early = 3\n",
            "early",
        ),
        (DIGEST.replace("demo-digest", "demo-digset"), "demo-digset"),
        (
            DIGEST.replace("template = \"demo-digest\"", "prompt = \"{{ messges }}\""),
            "messges",
        ),
        (
            DIGEST.replace("messages = 3", "messages = 3, early = \"speed > 3\""),
            "speed",
        ),
    ] {
        std::fs::write(folder.path().join("bad.toml"), bad).unwrap();
        let output = rules(folder.path(), &["lint"]);
        let said = text(&output.stdout) + &text(&output.stderr);
        assert_eq!(output.status.code(), Some(78), "{said}");
        assert!(said.contains("bad.toml") && said.contains(says), "{says}: {said}");
    }
}

#[tokio::test]
async fn what_is_recorded_can_be_tested() {
    let Some(broker) = Mosquitto::start() else { return };
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("digest.toml"), DIGEST).unwrap();
    let recording = folder.path().join("sample.jsonl");
    let mut recorder = Command::new(phi_edge())
        .args(["rules", "record", "plant/#", "--messages", "4", "--broker"])
        .arg(format!("mqtt://localhost:{}", broker.port))
        .stdout(std::fs::File::create(&recording).unwrap())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // It says so when it has subscribed.
    let mut said = String::new();
    let mut lines = BufReader::new(recorder.stderr.take().unwrap());
    lines.read_line(&mut said).unwrap();
    assert!(said.starts_with("recording"), "{said}");
    let mut client = client(broker.port).await;
    for payload in [
        &b"{\"temperature\":69}"[..],
        b"\xff\x00",
        b"{\"temperature\":82}",
        b"{\"temperature\":77}",
    ] {
        client
            .publish("plant/mixer-07/temperature", payload.to_vec(), None)
            .await
            .unwrap();
    }
    assert!(recorder.wait().unwrap().success());
    let recorded = std::fs::read_to_string(&recording).unwrap();
    assert_eq!(recorded.lines().count(), 4, "{recorded}");
    assert!(recorded.contains("payload_base64"), "{recorded}");
    std::fs::write(
        &recording,
        recorded
            .lines()
            .filter(|line| !line.contains("base64"))
            .collect::<Vec<_>>()
            .join("\n"),
    )
    .unwrap();

    let input = recording.to_str().unwrap();
    let output = rules(folder.path(), &["test", "digest", "--input", input, "--no-model"]);
    let said = text(&output.stdout);
    assert!(output.status.success(), "{said}{}", text(&output.stderr));
    for part in [
        "== window 1:",
        "event/digest",
        "\"mixer-07\"",
        "device: \"mixer-07\"",
        "max: 82.0 °C",
        "3 messages, 1 windows",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
    let output = rules(folder.path(), &["test", "none", "--input", input, "--no-model"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(
        text(&output.stderr).contains("there are digest"),
        "{}",
        text(&output.stderr)
    );
    if !has_library() {
        return;
    }
    let model = demo_model();
    let output = rules(
        folder.path(),
        &[
            "test",
            "digest",
            "--input",
            input,
            "--json",
            "--model",
            model.to_str().unwrap(),
        ],
    );
    let said = text(&output.stdout);
    assert!(output.status.success(), "{said}{}", text(&output.stderr));
    let event: Value = serde_json::from_str(said.trim()).unwrap();
    assert_eq!(event["stats"]["temperature"]["max"], 82.0);
    assert!(event["text"].as_str().unwrap().contains("82.0"), "{event}");
}
