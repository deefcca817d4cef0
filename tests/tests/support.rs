//! `phi-edge support`: what is in the bundle, and what never is.

#![allow(clippy::unwrap_used, missing_docs)]

use std::path::Path;
use std::process::Command;

use phi_edge_tests::{BASE, Daemon, Mosquitto, client, demo_model, has_library, json, next, phi_edge, state};

const PASSWORD: &str = "correct-horse-battery";
const CREDENTIAL: &str = "staple-of-the-unit";
const PROMPT: &str = "You guard the secret recipe.";
const QUESTION: &str = "Who is Rumpelstiltskin?";

/// All files of a bundle, one behind the other with their names.
fn unpacked(bundle: &Path) -> String {
    let list = Command::new("tar").arg("tzf").arg(bundle).output().unwrap();
    let text = Command::new("tar").arg("xzOf").arg(bundle).output().unwrap();
    assert!(list.status.success() && text.status.success());
    String::from_utf8(list.stdout).unwrap() + &String::from_utf8(text.stdout).unwrap()
}

#[cfg(unix)]
fn journal(folder: &Path) {
    use std::os::unix::fs::PermissionsExt as _;
    // What a careless library may log, and what the level trace holds.
    let script = format!(
        "#!/bin/sh\necho 'INFO connecting with {PASSWORD} to mqtt://me:pa55word@host'\necho '2026-01-01T00:00:00Z TRACE prompt {QUESTION}'\n\
         echo \"INFO asked for: $*\"\n"
    );
    let file = folder.join("journalctl");
    std::fs::write(&file, script).unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755)).unwrap();
}

#[cfg(unix)]
#[tokio::test]
async fn a_bundle_holds_what_helps_and_no_secret() {
    use std::os::unix::fs::PermissionsExt as _;
    if !has_library() {
        return;
    }
    let Some(broker) = Mosquitto::start() else { return };
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(name);
    std::fs::write(file("password"), format!("{PASSWORD}\n")).unwrap();
    std::fs::create_dir(file("credentials")).unwrap();
    std::fs::write(file("credentials/token"), CREDENTIAL).unwrap();
    journal(folder.path());
    let port = phi_edge_tests::free_port();
    let settings = [
        "mqtt.username=me".to_owned(),
        format!("mqtt.password_file={}", file("password").display()),
        format!("metrics.listen=127.0.0.1:{port}"),
        format!("runtime.system_prompts={PROMPT}"),
    ];
    let given: Vec<&str> = settings.iter().map(String::as_str).collect();
    let daemon = Daemon::start(broker.port, &demo_model(), &given);
    let mut client = client(broker.port).await;
    state(&mut client, "ready").await;
    client.subscribe(&format!("{BASE}/response/#")).await.unwrap();
    let request = serde_json::json!({"id": "q", "prompt": QUESTION}).to_string();
    client
        .publish(&format!("{BASE}/request"), request, None)
        .await
        .unwrap();
    next(&mut client, "an answer", |message| {
        (message.property("kind") == Some("final") && json(message)["id"] == "q").then_some(())
    })
    .await;

    let bundle = file("bundle.tar.gz");
    let path = std::env::join_paths(
        std::iter::once(folder.path().to_path_buf())
            .chain(std::env::split_paths(&std::env::var_os("PATH").unwrap())),
    )
    .unwrap();
    let support = |bundle: &Path| {
        let mut command = Command::new(phi_edge());
        command.arg("support").arg("--output").arg(bundle);
        for setting in [
            format!("mqtt.port={}", broker.port),
            "node.name=test".to_owned(),
            format!("model.path={}", demo_model().display()),
            format!("store.path={}", daemon.folder.path().display()),
        ]
        .iter()
        .chain(&settings)
        {
            command.args(["--set", setting]);
        }
        command
            .env("PATH", &path)
            .env("CREDENTIALS_DIRECTORY", file("credentials"))
            .env("PHI_EDGE__NODE__RULES_DIR", format!("/nowhere/{CREDENTIAL}"))
            .output()
            .unwrap()
    };
    let made = support(&bundle);
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    assert_eq!(bundle.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    let text = unpacked(&bundle);
    for held in [
        "versions.txt",
        "library: ",
        "ok     model",
        "[mqtt]",
        "genai_config.json",
        "\"boot_id\"",
        "\"queued\"",
        "phi_edge_link_up 1",
        "HTTP/1.1 200 OK",
        "INFO asked for: --unit phi-edge --priority info --lines 2000",
        "connecting with *** to mqtt://***@host",
    ] {
        assert!(text.contains(held), "no {held:?} in\n{text}");
    }
    for secret in [PASSWORD, CREDENTIAL, PROMPT, QUESTION, "pa55word"] {
        assert!(!text.contains(secret), "{secret:?} in\n{text}");
    }
    let again = support(&bundle);
    assert!(!again.status.success(), "a file that is there is not overwritten");
}

#[test]
fn a_wrong_configuration_is_what_a_bundle_is_for() {
    let folder = tempfile::tempdir().unwrap();
    let bundle = folder.path().join("bundle.tar.gz");
    let made = Command::new(phi_edge())
        .args(["support", "--set", "mqtt.hots=x", "--set"])
        .arg(format!("mqtt.password={PASSWORD}"))
        .arg("--output")
        .arg(&bundle)
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let text = unpacked(&bundle);
    assert!(text.contains("mqtt.hots") && !text.contains(PASSWORD), "{text}");
}
