//! The commands besides `ask` and `bench`, and their exit codes.

#![allow(clippy::unwrap_used, missing_docs)]

use std::process::{Command, Output};

use phi_edge_tests::{BASE, Daemon, Mosquitto, client, demo_model, free_port, has_library, phi_edge, state};
use serde_json::Value;

fn phi(arguments: &[&str]) -> Output {
    Command::new(phi_edge()).args(arguments).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[test]
fn what_is_not_read_on_ends_a_command_without_a_word() {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let output = Command::new(phi_edge())
        .args(["check", "--offline", "--set", "model.path=/nowhere"])
        .stdout(writer)
        .output()
        .unwrap();
    let said = text(&output.stderr);
    assert!(!said.contains("panicked"), "{said}");
    assert_ne!(output.status.code(), Some(101));
}

#[test]
fn config_prints_values_and_where_they_came_from() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("my.toml");
    std::fs::write(
        &file,
        "[mqtt]\nhost = \"broker.local\"\npassword = \"secret\"\nusername = \"u\"\n",
    )
    .unwrap();
    let output = Command::new(phi_edge())
        .args([
            "config",
            "--config",
            file.to_str().unwrap(),
            "--set",
            "runtime.slots=2",
        ])
        .env("PHI_EDGE__NODE__NAME", "press-7")
        .output()
        .unwrap();
    let said = text(&output.stdout);
    assert!(output.status.success());
    assert!(
        said.contains("host = \"broker.local\"") && said.contains("my.toml"),
        "{said}"
    );
    assert!(
        said.contains("name = \"press-7\"") && said.contains("PHI_EDGE__NODE__NAME"),
        "{said}"
    );
    assert!(said.contains("slots = 2"), "{said}");
    assert!(!said.contains("secret"), "{said}");
}

#[test]
fn an_unknown_key_is_named_with_its_neighbour() {
    let output = phi(&["config", "--set", "mqtt.hots=x"]);
    assert_eq!(output.status.code(), Some(78));
    let said = text(&output.stderr);
    assert!(said.contains("mqtt.hots") && said.contains("mqtt.host"), "{said}");
}

/// As docs/install.md sets the password up: only the unit's own processes have it.
#[test]
fn a_credential_of_the_unit_is_missed_only_where_the_broker_is_asked() {
    let folder = tempfile::tempdir().unwrap();
    let bundle = folder.path().join("bundle.tar.gz");
    let settings = [
        "mqtt.username=u".to_owned(),
        "mqtt.password_file=credential:mqtt.password".to_owned(),
        format!("mqtt.port={}", free_port()),
        format!("model.path={}", demo_model().display()),
        format!("store.path={}", folder.path().join("store").display()),
    ];
    let with_credential = |arguments: &[&str]| {
        let mut command = Command::new(phi_edge());
        command.args(arguments).env_remove("CREDENTIALS_DIRECTORY");
        for setting in &settings {
            command.args(["--set", setting]);
        }
        command.output().unwrap()
    };
    for arguments in [
        vec!["models", "list"],
        vec!["rules", "lint"],
        vec!["config"],
        vec!["support", "--output", bundle.to_str().unwrap()],
    ] {
        let output = with_credential(&arguments);
        assert!(output.status.success(), "{arguments:?}: {}", text(&output.stderr));
    }
    let missed = "the credential \"mqtt.password\" (mqtt.password_file) is not there";
    let offline = text(&with_credential(&["check", "--offline"]).stdout);
    assert!(
        offline.contains(&format!("note   broker    {missed}")),
        "{offline}"
    );
    let online = text(&with_credential(&["check"]).stdout);
    assert!(online.contains(&format!("fault  broker    {missed}")), "{online}");
    let run = with_credential(&["run"]);
    assert_eq!(run.status.code(), Some(78), "{}", text(&run.stderr));
    assert!(text(&run.stderr).contains(missed), "{}", text(&run.stderr));
}

#[test]
fn what_keeps_the_daemon_from_running_has_its_exit_code() {
    let model = format!("model.path={}", demo_model().display());
    for (settings, code, says) in [
        (vec!["model.path=/nowhere"], 78, "/nowhere"),
        (
            vec![model.as_str(), "runtime.library=/nowhere/lib.so"],
            69,
            "/nowhere/lib.so",
        ),
        (
            vec![model.as_str(), "mqtt.tls.ca=/nowhere/ca.pem"],
            78,
            "/nowhere/ca.pem",
        ),
        (
            vec![
                model.as_str(),
                "mqtt.embedded=true",
                "mqtt.embedded_listen=0.0.0.0:0",
            ],
            78,
            "embedded_password_file",
        ),
        (vec!["log.level=loud=very=much"], 78, "log.level"),
        (
            vec![model.as_str(), "runtime.kv_cache=q8"],
            78,
            "runtime.kv_cache",
        ),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let store = format!("store.path={}", folder.path().display());
        let port = format!("mqtt.port={}", free_port());
        let mut arguments = vec!["run", "--set", &store, "--set", &port];
        for setting in &settings {
            arguments.extend(["--set", setting]);
        }
        let output = phi(&arguments);
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{settings:?}: {said}");
        assert!(
            said.lines().last().unwrap().contains(says),
            "{settings:?}: {said}"
        );
    }
}

#[test]
fn an_explicit_provider_is_never_replaced() {
    if !has_library() {
        return;
    }
    let model = format!("model.path={}", demo_model().display());
    let other = if cfg!(windows) {
        "runtime.provider=cuda"
    } else {
        "runtime.provider=directml"
    };
    let output = phi(&["check", "--offline", "--set", &model, "--set", other]);
    assert_eq!(output.status.code(), Some(69), "{}", text(&output.stdout));
    assert!(
        text(&output.stdout).contains("fault  provider"),
        "{}",
        text(&output.stdout)
    );
}

#[test]
fn a_plugin_is_missed_refused_or_replaced_with_the_reason() {
    if !has_library() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let library = folder.path().join("ep.so");
    let model = format!("model.path={}", demo_model().display());
    let named = format!("runtime.plugin.library={}", library.display());
    let check = |more: &[&str]| {
        let common = [
            "check",
            "--offline",
            "--set",
            &model,
            "--set",
            "runtime.provider=plugin",
            "--set",
            &named,
        ];
        let output = phi(&[&common, more].concat());
        (output.status.code(), text(&output.stdout))
    };
    let (code, said) = check(&[]);
    assert_eq!(code, Some(69), "{said}");
    assert!(
        said.contains("can't be served") && said.contains(library.to_str().unwrap()),
        "{said}"
    );

    let (code, said) = check(&["--set", "runtime.fallback=cpu"]);
    assert_eq!(code, Some(0), "{said}");
    assert!(
        said.contains("ok     provider  cpu: it is the fallback")
            && said
                .contains("warn   provider  plugin can't be used here, and runtime.fallback takes its place"),
        "{said}"
    );

    let missing = phi(&[
        "check",
        "--offline",
        "--set",
        &model,
        "--set",
        "runtime.provider=plugin",
    ]);
    assert_eq!(missing.status.code(), Some(78));

    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt as _;

        std::fs::write(&library, "no library").unwrap();
        std::fs::set_permissions(&library, std::fs::Permissions::from_mode(0o666)).unwrap();
        let (code, said) = check(&["--set", "runtime.fallback=cpu"]);
        assert_eq!(code, Some(78), "{said}");
        assert!(said.contains("is refused"), "{said}");
    }
}

#[test]
fn a_type_of_keys_and_values_is_taken_or_refused_with_the_reason() {
    if !has_library() {
        return;
    }
    let model = demo_model();
    let with_type = |command: &[&str], kv_cache: &str| {
        let model = ["--model", model.to_str().unwrap(), "--provider", "cpu"];
        let arguments = [command, &model, &["--kv-cache", kv_cache]].concat();
        phi(&arguments)
    };
    let bench = ["bench", "--json", "--prompt-tokens", "8", "--new-tokens", "2"];
    let output = with_type(&bench, "f32");
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["kv_cache"], "f32", "{report}");
    // A graph that may not be edited has no operator for 8 bits.
    let output = with_type(&["ask", "x", "--prepare", "plain"], "i8");
    assert_eq!(output.status.code(), Some(78));
    let said = text(&output.stderr);
    let last = said.lines().last().unwrap();
    for part in [
        "--kv-cache i8 can't be served",
        "8-bit keys and values",
        "Leave out --prepare, or give --kv-cache auto or f32",
    ] {
        assert!(last.contains(part), "{said}");
    }
    assert!(!last.contains("runtime.kv_cache"), "{said}");
    // What is measured is no choice either.
    let loss = [
        "bench",
        "--kv-loss",
        "--provider",
        "cpu",
        "--model",
        model.to_str().unwrap(),
    ];
    let output = phi(&[&loss[..], &["--prepare", "plain"]].concat());
    assert_eq!(output.status.code(), Some(78));
    let said = text(&output.stderr);
    let last = said.lines().last().unwrap();
    assert!(
        last.contains("--kv-loss can't be served") && !last.contains("runtime.kv_cache"),
        "{said}"
    );
    let output = with_type(&["ask", "x"], "q8");
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("use auto, f32 or i8"));
}

#[test]
fn check_says_what_is_right_and_what_is_not() {
    if !has_library() {
        return;
    }
    let model = format!("model.path={}", demo_model().display());
    let port = format!("mqtt.port={}", free_port());
    let output = phi(&["check", "--set", &model, "--set", &port]);
    let said = text(&output.stdout);
    assert_eq!(output.status.code(), Some(69), "{said}");
    for line in [
        "ok     config",
        "ok     model",
        "ok     library",
        "ok     cores",
        "ok     provider",
        "ok     memory",
        "fault  broker",
    ] {
        assert!(said.contains(line), "{said}");
    }
    let threads = "runtime.threads=3";
    let output = phi(&[
        "check",
        "--offline",
        "--set",
        &model,
        "--set",
        &port,
        "--set",
        threads,
    ]);
    assert!(output.status.success());
    let said = text(&output.stdout);
    assert!(said.contains("ok     cores     3 threads as set"), "{said}");
    // What the memory does not hold beside requests is a warning, and what the context does not, a fault of its own.
    let folder = tempfile::tempdir().unwrap();
    let store = format!("store.path={}", folder.path().display());
    let with = |prompts: &str, memory: &str| {
        let prompts = format!("runtime.system_prompts=[{prompts}]");
        let memory = format!("runtime.kv_memory={memory}");
        let set = [
            "check",
            "--offline",
            "--set",
            &model,
            "--set",
            &port,
            "--set",
            &store,
        ];
        phi(&[
            &set[..],
            &[
                "--set",
                &prompts,
                "--set",
                &memory,
                "--set",
                "runtime.provider=cpu",
            ],
        ]
        .concat())
    };
    let long = |words: usize| format!("\"{}\"", "word ".repeat(words));
    let output = with(&format!("\"Be brief.\", {}", long(150)), "1MiB");
    let said = text(&output.stdout);
    assert!(
        output.status.success() && text(&output.stderr).find("is not kept").is_none(),
        "{said}"
    );
    for line in [
        "warn   prefixes  runtime.system_prompts: number 2",
        "ok     prefixes  pinned; beside them a context of",
    ] {
        assert!(said.contains(line), "{said}");
    }
    let output = with(&long(3000), "1TiB");
    let said = text(&output.stdout);
    assert_eq!(output.status.code(), Some(78), "{said}");
    for line in [
        "warn   memory    runtime.kv_memory is 1024 GiB",
        "fault  prefixes  runtime.system_prompts: number 1",
    ] {
        assert!(said.contains(line), "{said}");
    }
    assert!(said.contains("shorten it, or take it out"), "{said}");
}

#[tokio::test]
async fn a_daemon_waits_for_its_broker() {
    if !has_library() {
        return;
    }
    let Some(mut broker) = Mosquitto::start() else {
        return;
    };
    broker.stop();
    let _daemon = Daemon::start(broker.port, &demo_model(), &[]);
    broker.start_again();
    let mut client = client(broker.port).await;
    state(&mut client, "ready").await;
}

#[tokio::test]
async fn the_embedded_broker_serves_other_clients() {
    if !has_library() {
        return;
    }
    let port = free_port();
    let listen = format!("mqtt.embedded_listen=127.0.0.1:{port}");
    let mut daemon = Daemon::start(port, &demo_model(), &["mqtt.embedded=true", &listen]);
    let url = format!("mqtt://127.0.0.1:{port}/{BASE}");
    let output = tokio::task::spawn_blocking(move || {
        // The broker comes up with the daemon: the first attempts may find none.
        for _ in 0..600 {
            let output = phi(&["ask", "--broker", &url, "--json", "Who are you?"]);
            if output.status.code() != Some(69) {
                return output;
            }
            std::thread::sleep(std::time::Duration::from_millis(100));
        }
        panic!("no broker");
    })
    .await
    .unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    let reply: Value = serde_json::from_str(&text(&output.stdout)).unwrap();
    assert!(
        reply["text"].as_str().unwrap().contains("demonstration"),
        "{reply}"
    );
    daemon.signal("TERM");
    assert!(daemon.wait().success());
}

#[tokio::test]
async fn ask_finds_the_daemon_at_a_broker() {
    if !has_library() {
        return;
    }
    let Some(broker) = Mosquitto::start() else { return };
    let url = format!("mqtt://localhost:{}", broker.port);
    let unanswered = phi(&["ask", "--broker", &url, "Hello"]);
    assert_eq!(unanswered.status.code(), Some(69));
    assert!(
        text(&unanswered.stderr).contains("no phi-edge"),
        "{}",
        text(&unanswered.stderr)
    );
    let _daemon = Daemon::start(broker.port, &demo_model(), &[]);
    let mut client = client(broker.port).await;
    let status = state(&mut client, "ready").await;
    assert_eq!(
        (status["model"].as_str(), status["provider"].as_str()),
        (Some("phi-edge-demo"), Some("cpu"))
    );
    assert_eq!(
        status["provider_reason"].as_str(),
        Some("it is the one that was asked for")
    );
    // Other than the affinity the test does not know: it may run on any machine.
    assert!(
        status["threads"].as_u64().is_some_and(|threads| threads > 0),
        "{status}"
    );
    assert!(
        !cfg!(target_os = "linux") || status["cpus"].is_string(),
        "{status}"
    );
    let output = phi(&["ask", "--broker", &url, "Who are you?"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(
        text(&output.stdout).contains("demonstration"),
        "{}",
        text(&output.stdout)
    );
    client.subscribe(&format!("{BASE}/response/#")).await.unwrap();
    let bad = phi(&["ask", "--broker", &url, "--max-tokens", "100000", "x"]);
    assert_eq!(bad.status.code(), Some(1));
    assert!(text(&bad.stderr).contains("max_tokens"), "{}", text(&bad.stderr));
}

/// `phi-edge ask` with a request that this client has received in place of a daemon, and the request's id.
#[cfg(unix)]
async fn asking(broker: &Mosquitto, client: &mut phi_edge_mqtt::Client) -> (std::process::Child, Value) {
    let status = r#"{"state":"ready","features":[]}"#;
    client.subscribe(&format!("{BASE}/request")).await.unwrap();
    let asking = Command::new(phi_edge())
        .args(["ask", "--broker"])
        .args([&format!("mqtt://localhost:{}/{BASE}", broker.port), "Hello"])
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    // Not retained: the status is repeated until the command has subscribed to it.
    let request = loop {
        client
            .publish(&format!("{BASE}/status"), status, None)
            .await
            .unwrap();
        let received = client
            .receive(std::time::Duration::from_millis(50))
            .await
            .unwrap();
        if let Some(message) = received.filter(|message| message.topic == format!("{BASE}/request")) {
            break phi_edge_tests::json(&message);
        }
    };
    (asking, request["id"].clone())
}

#[cfg(unix)]
#[tokio::test]
async fn an_interrupted_ask_cancels_its_request() {
    let Some(broker) = Mosquitto::start() else { return };
    let mut client = client(broker.port).await;
    client.subscribe(&format!("{BASE}/cancel")).await.unwrap();
    for signal in ["INT", "TERM"] {
        let (asking, id) = asking(&broker, &mut client).await;
        phi_edge_tests::signal(&asking, signal);
        let cancelled = phi_edge_tests::next(&mut client, "a cancellation", |message| {
            (message.topic == format!("{BASE}/cancel")).then(|| phi_edge_tests::json(message))
        })
        .await;
        assert_eq!(cancelled, serde_json::json!({ "id": id }), "{signal}");
        let output = asking.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{signal}");
        let said = text(&output.stderr);
        assert!(said.trim_end().ends_with("interrupted"), "{signal}: {said}");
    }
}

#[cfg(unix)]
#[tokio::test]
async fn an_interrupted_ask_does_not_wait_for_a_broker_that_hangs() {
    let Some(broker) = Mosquitto::start() else { return };
    let mut client = client(broker.port).await;
    let (asking, _) = asking(&broker, &mut client).await;
    broker.signal("STOP");
    phi_edge_tests::signal(&asking, "INT");
    let output = asking.wait_with_output().unwrap();
    broker.signal("CONT");
    assert_eq!(output.status.code(), Some(1));
    let said = text(&output.stderr);
    assert!(said.contains("could not be cancelled"), "{said}");
}
