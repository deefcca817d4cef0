//! The clients in `examples/` do what they say, against a real node and mosquitto.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, missing_docs, reason = "a test may end at a fault")]

use std::ffi::OsString;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use phi_edge_tests::{
    Daemon, Mosquitto, TIMEOUT, client, demo_model, free_port, has_library, json, next, skip,
};

/// The node that the examples ask.
const NODE: &str = "press-07";
/// What the demonstration model says of itself.
const ANSWER: &str = "small demonstration model";

/// A rule for the examples that show events.
const RULE: &str = r#"
topics = ["plant/+/temperature"]
group_by = "topic:1"
fields = { celsius = "/celsius" }
window = { kind = "tumbling", every = "2s" }
template = "demo-digest"
"#;

async fn node() -> Option<(Mosquitto, Daemon)> {
    if !has_library() {
        return None;
    }
    let broker = Mosquitto::start()?;
    let folder = tempfile::tempdir().unwrap();
    let rules = folder.path().join("rules");
    fs::create_dir(&rules).unwrap();
    fs::write(rules.join("heat.toml"), RULE).unwrap();
    let settings = [
        format!("node.name={NODE}"),
        format!("node.rules_dir={}", rules.display()),
    ];
    let daemon = Daemon::start_in(
        folder,
        broker.port,
        &demo_model(),
        &settings.each_ref().map(String::as_str),
    );
    let mut client = client(broker.port).await;
    let topic = format!("phi-edge/v1/{NODE}/status");
    client.subscribe(&topic).await.unwrap();
    next(&mut client, "a node that is ready", |message| {
        (json(message)["state"] == "ready").then_some(())
    })
    .await;
    client.close().await;
    Some((broker, daemon))
}

fn examples() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples")
}

/// The interpreter that has the Python clients' packages.
fn python() -> Option<OsString> {
    let python = std::env::var_os("PHI_EDGE_TEST_PYTHON");
    if python.is_none() {
        skip("no Python with paho: run cargo xtask test");
    }
    python
}

/// The folder of node packages.
fn node_modules() -> Option<PathBuf> {
    let folder = std::env::var_os("PHI_EDGE_TEST_NODE_MODULES");
    if folder.is_none() {
        skip("no Node.js with mqtt and node-red: run cargo xtask test");
    }
    folder.map(PathBuf::from)
}

/// Runs a program to its end, which must come in time.
fn run(command: &mut Command) -> Output {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let deadline = Instant::now() + TIMEOUT;
    while child.try_wait().unwrap().is_none() {
        if Instant::now() > deadline {
            let _ = child.kill();
            let output = child.wait_with_output().unwrap();
            panic!("{command:?} does not end: {}", said(&output));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", said(&output));
    output
}

fn said(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

#[track_caller]
fn check(command: &mut Command, says: &[&str]) {
    let said = said(&run(command));
    for text in says {
        assert!(said.contains(text), "{text} is missing in: {said}");
    }
}

#[tokio::test]
async fn python_asks_streams_and_cancels() {
    let Some(python) = python() else { return };
    let Some((broker, _daemon)) = node().await else {
        return;
    };
    let ask = |arguments: &[&str]| {
        let mut command = Command::new(&python);
        command
            .arg(examples().join("python-paho/ask.py"))
            .args(["--node", NODE, "--port", &broker.port.to_string()])
            .args(arguments);
        command
    };
    check(&mut ask(&["Who are you?"]), &[ANSWER, "[stop, "]);
    // What is sampled at random may end before it is taken back; not every time.
    let cancelled = (0..20).any(|seed| {
        let seed = seed.to_string();
        let mut long = ask(&["--cancel-after", "1", "--max-tokens", "1500"]);
        let said = said(&run(long.args([
            "--temperature",
            "10",
            "--seed",
            &seed,
            "press-07 182 bar",
        ])));
        assert!(
            said.contains("[cancelled, ") || said.contains("[stop, "),
            "{said}"
        );
        said.contains("[cancelled, ")
    });
    assert!(cancelled, "no answer could be taken back");
}

#[tokio::test]
async fn node_asks_and_streams() {
    let Some(modules) = node_modules() else { return };
    let Some((broker, _daemon)) = node().await else {
        return;
    };
    let mut ask = Command::new("node");
    ask.arg(examples().join("node-mqttjs/ask.js"))
        .args([NODE, "Who are you?", &format!("mqtt://localhost:{}", broker.port)])
        .env("NODE_PATH", modules);
    check(&mut ask, &[ANSWER, "[stop, "]);
}

#[tokio::test]
async fn rust_asks_and_streams() {
    let Some((broker, _daemon)) = node().await else {
        return;
    };
    // Tests lie in target/PROFILE/deps, examples in target/PROFILE/examples.
    let test = std::env::current_exe().unwrap();
    let profile = test.parent().and_then(Path::parent).unwrap();
    let example = profile.join("examples/ask");
    assert!(
        example.exists(),
        "{} is not built: run cargo test --workspace",
        example.display()
    );
    let mut ask = Command::new(example);
    ask.args([NODE, "Who are you?", &format!("localhost:{}", broker.port)]);
    check(&mut ask, &[ANSWER, "[stop, "]);
}

/// Renders every template of the package on what the node publishes.
#[tokio::test]
async fn home_assistant_asks_and_shows() {
    let Some(python) = python() else { return };
    let Some((broker, _daemon)) = node().await else {
        return;
    };
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/clients/home_assistant.py");
    let mut command = Command::new(python);
    command
        .arg(script)
        .arg(broker.port.to_string())
        .arg(examples().join("home-assistant/phi_edge.yaml"));
    run(&mut command);
}

/// A Node-RED of its own, gone with this value.
struct NodeRed {
    process: Child,
    folder: tempfile::TempDir,
    port: u16,
}

impl NodeRed {
    fn start(modules: &Path, broker: u16) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let port = free_port();
        let flow = fs::read_to_string(examples().join("node-red/flow.json")).unwrap();
        let here = flow.replace("\"1883\"", &format!("\"{broker}\""));
        assert_ne!(here, flow, "the flow's broker has another port");
        fs::write(folder.path().join("flow.json"), here).unwrap();
        let settings = format!(
            "module.exports = {{ uiPort: {port}, uiHost: '127.0.0.1', flowFile: 'flow.json', credentialSecret: 'x' }};"
        );
        fs::write(folder.path().join("settings.js"), settings).unwrap();
        let log = fs::File::create(folder.path().join("log")).unwrap();
        let process = Command::new("node")
            .arg(modules.join("node-red/red.js"))
            .arg("--userDir")
            .arg(folder.path())
            .arg("--settings")
            .arg(folder.path().join("settings.js"))
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        Self {
            process,
            folder,
            port,
        }
    }

    fn wait_for(&self, text: &str) {
        let deadline = Instant::now() + TIMEOUT;
        loop {
            let log = fs::read_to_string(self.folder.path().join("log")).unwrap();
            if log.contains(text) {
                return;
            }
            assert!(Instant::now() < deadline, "waited in vain for {text}: {log}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Presses the button of an inject node.
    fn inject(&self, node: &str) {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        stream.set_read_timeout(Some(TIMEOUT)).unwrap();
        let request = format!(
            "POST /inject/{node} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
}

impl Drop for NodeRed {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[tokio::test]
async fn node_red_asks_and_shows() {
    let Some(modules) = node_modules() else { return };
    let Some((broker, _daemon)) = node().await else {
        return;
    };
    let red = NodeRed::start(&modules, broker.port);
    red.wait_for("Connected to broker");
    red.inject("phi-ask");
    red.wait_for(ANSWER);
}
