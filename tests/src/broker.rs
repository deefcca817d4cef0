//! Debian's mosquitto, started for one test.

use std::io::Write as _;
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::skip;

/// A mosquitto of its own, on a free port, gone with this value.
pub struct Mosquitto {
    /// Where it listens.
    pub port: u16,
    folder: TempDir,
    process: Option<Child>,
}

impl Mosquitto {
    /// Starts one that lets everybody in; `None` (and said so) where there is none.
    pub fn start() -> Option<Self> {
        Self::with("allow_anonymous true\n", |_| {})
    }

    /// Starts one with further lines of configuration; `prepare` may put files into its folder first, which the
    /// lines name as `{folder}/…`; `{port}` is where it listens.
    pub fn with(lines: &str, prepare: impl FnOnce(&Path)) -> Option<Self> {
        if Command::new("mosquitto")
            .arg("-h")
            .stdout(Stdio::null())
            .status()
            .is_err()
        {
            skip("mosquitto is not installed");
            return None;
        }
        let folder = tempfile::tempdir().expect("a temporary folder");
        prepare(folder.path());
        let lines = lines.replace("{folder}", &folder.path().display().to_string());
        let mut broker = Self {
            port: 0,
            folder,
            process: None,
        };
        // Another process may take a port between its choice and mosquitto's start.
        for _ in 0..5 {
            broker.port = free_port();
            let config = format!(
                "{}set_tcp_nodelay true\npersistence true\npersistence_location {}/\nlistener {} 127.0.0.1\n{}",
                same_user(),
                broker.folder.path().display(),
                broker.port,
                lines.replace("{port}", &broker.port.to_string())
            );
            std::fs::write(broker.folder.path().join("mosquitto.conf"), config).expect("a configuration");
            broker.process = Some(spawn(broker.folder.path()));
            if broker.listens() {
                return Some(broker);
            }
        }
        panic!("mosquitto does not start");
    }

    /// Ends it in good order; its memory stays on disk.
    pub fn stop(&mut self) {
        if let Some(mut process) = self.process.take() {
            crate::signal(&process, "TERM");
            process.wait().expect("mosquitto ends");
        }
    }

    /// Ends it at once, as a power cut does.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            let _ = process.kill();
            let _ = process.wait();
        }
    }

    /// Sends it a signal by name.
    pub fn signal(&self, name: &str) {
        if let Some(process) = &self.process {
            crate::signal(process, name);
        }
    }

    /// Its folder, with what it remembers in `mosquitto.db`.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Starts it again on the same port with what it remembers.
    pub fn start_again(&mut self) {
        self.process = Some(spawn(self.folder.path()));
        assert!(self.listens(), "mosquitto does not start again");
    }

    fn listens(&mut self) -> bool {
        let deadline = Instant::now() + Duration::from_secs(10);
        while Instant::now() < deadline {
            if TcpStream::connect(("127.0.0.1", self.port)).is_ok() {
                return true;
            }
            let ended = self
                .process
                .as_mut()
                .is_none_or(|process| process.try_wait().is_ok_and(|s| s.is_some()));
            if ended {
                return false;
            }
            std::thread::yield_now();
        }
        false
    }
}

impl Drop for Mosquitto {
    fn drop(&mut self) {
        if let Some(mut process) = self.process.take() {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

/// Started by root, mosquitto becomes a user that can't write to our folder, unless it is told not to.
fn same_user() -> &'static str {
    let root = Command::new("id")
        .arg("-u")
        .output()
        .is_ok_and(|output| output.stdout.trim_ascii() == b"0");
    if root { "user root\n" } else { "" }
}

fn spawn(folder: &Path) -> Child {
    let log = std::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(folder.join("mosquitto.log"))
        .expect("a log");
    let mut log_head = log.try_clone().expect("a log");
    writeln!(log_head, "-- start").expect("a log");
    Command::new("mosquitto")
        .arg("-c")
        .arg(folder.join("mosquitto.conf"))
        .stdout(log.try_clone().expect("a log"))
        .stderr(log)
        .spawn()
        .expect("mosquitto starts")
}

/// A port that was free a moment ago.
pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0")
        .and_then(|listener| listener.local_addr())
        .expect("a free port")
        .port()
}
