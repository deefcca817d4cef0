//! The daemon as a process, and a client that waits for what it says.

use std::io::Read as _;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use phi_edge_mqtt::{Client, ClientOptions, Received};
use serde_json::Value;
use tempfile::TempDir;

/// Longer than anything that works takes, on a busy machine in a debug build.
pub const TIMEOUT: Duration = Duration::from_mins(1);

/// The daemon's node name in tests.
pub const NODE: &str = "test";

/// The daemon's base topic in tests.
pub const BASE: &str = "phi-edge/v1/test";

/// `phi-edge run`, ended with this value.
pub struct Daemon {
    process: Child,
    /// The store's folder, also of the log.
    pub folder: TempDir,
}

impl Daemon {
    /// Starts it at the broker on `port` with `model` and further settings (`key=value`, or `--config=FILE`).
    pub fn start(port: u16, model: &Path, settings: &[&str]) -> Self {
        Self::start_in(
            tempfile::tempdir().expect("a temporary folder"),
            port,
            model,
            settings,
        )
    }

    /// As [`Daemon::start`], with the folder of an earlier one.
    pub fn start_in(folder: TempDir, port: u16, model: &Path, settings: &[&str]) -> Self {
        Self::start_under(Command::new(crate::phi_edge()), folder, port, model, settings)
    }

    /// As [`Daemon::start_in`], with a command that ends in the daemon's own: `env …`, `ip netns exec …`.
    pub fn start_under(
        mut command: Command,
        folder: TempDir,
        port: u16,
        model: &Path,
        settings: &[&str],
    ) -> Self {
        let log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(folder.path().join("log"))
            .expect("a log");
        command.arg("run");
        for setting in [
            format!("mqtt.port={port}"),
            "mqtt.host=localhost".to_owned(),
            format!("node.name={NODE}"),
            "log.level=debug".to_owned(),
            "runtime.provider=cpu".to_owned(),
            format!("model.path={}", model.display()),
            format!("store.path={}", folder.path().display()),
        ] {
            command.args(["--set", &setting]);
        }
        for setting in settings {
            match setting.strip_prefix("--config=") {
                Some(file) => command.args(["--config", file]),
                None => command.args(["--set", setting]),
            };
        }
        let process = command
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("the daemon starts");
        Self { process, folder }
    }

    /// Sends a signal by name.
    pub fn signal(&self, name: &str) {
        crate::signal(&self.process, name);
    }

    /// The process's number.
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// Waits for its end.
    pub fn wait(&mut self) -> ExitStatus {
        let deadline = Instant::now() + TIMEOUT;
        while Instant::now() < deadline {
            if let Some(status) = self.process.try_wait().expect("a process") {
                return status;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        panic!("the daemon does not end; its log:\n{}", self.log());
    }

    /// Whether it still runs.
    pub fn runs(&mut self) -> bool {
        self.process.try_wait().expect("a process").is_none()
    }

    /// What it has logged so far.
    pub fn log(&self) -> String {
        let mut text = String::new();
        std::fs::File::open(self.folder.path().join("log"))
            .and_then(|mut file| file.read_to_string(&mut text))
            .expect("a log");
        text
    }

    /// Ends it without ceremony and keeps its folder.
    pub fn kill(mut self) -> TempDir {
        let _ = self.process.kill();
        let _ = self.process.wait();
        std::mem::replace(&mut self.folder, tempfile::tempdir().expect("a temporary folder"))
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        if std::thread::panicking() {
            eprintln!("the daemon's log:\n{}", self.log());
        }
    }
}

/// A client of the broker on `port`.
pub async fn client(port: u16) -> Client {
    Client::connect(ClientOptions {
        host: "localhost".into(),
        port,
        client_id: format!("test-{}-{}", std::process::id(), crate::unique()),
        ..ClientOptions::default()
    })
    .await
    .expect("the broker lets us in")
}

/// Waits for a message that `wanted` takes; others are passed over.
pub async fn next<T>(client: &mut Client, what: &str, mut wanted: impl FnMut(&Received) -> Option<T>) -> T {
    let deadline = Instant::now() + TIMEOUT;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        match client.receive(left).await.expect("a connection") {
            Some(message) => {
                if let Some(found) = wanted(&message) {
                    return found;
                }
            }
            None => panic!("waited in vain for {what}"),
        }
    }
}

/// Subscribes to the status and waits for `state`.
pub async fn state(client: &mut Client, state: &str) -> Value {
    let topic = format!("{BASE}/status");
    client.subscribe(&topic).await.expect("a subscription");
    next(client, state, |message| {
        let status = json(message);
        (message.topic == topic && status["state"] == state).then_some(status)
    })
    .await
}

/// The payload as JSON, null where it is none.
pub fn json(message: &Received) -> Value {
    serde_json::from_slice(&message.payload).unwrap_or_default()
}
