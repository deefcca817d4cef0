//! Debian's Prometheus, started for one test, and the raw HTTP that is needed to ask it and the daemon.

use std::fmt::Write as _;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

use crate::daemon::TIMEOUT;
use crate::{free_port, skip};

/// What a server answers: its status and its body.
///
/// # Errors
/// There is no server, or it does not answer.
pub fn http(port: u16, head: &str) -> std::io::Result<(u16, String)> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.write_all(format!("{head}\r\n\r\n").as_bytes())?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let answer = String::from_utf8_lossy(&answer);
    let (head, body) = answer
        .split_once("\r\n\r\n")
        .ok_or(std::io::ErrorKind::InvalidData)?;
    let status = head
        .split(' ')
        .nth(1)
        .and_then(|code| code.parse().ok())
        .ok_or(std::io::ErrorKind::InvalidData)?;
    Ok((status, body.to_owned()))
}

/// A Prometheus of its own that scrapes one target, gone with this value.
pub struct Prometheus {
    port: u16,
    folder: TempDir,
    process: Option<Child>,
}

impl Prometheus {
    /// Starts one that scrapes `target` as the job `phi-edge` and evaluates the rules of a file; `None` (and said so) where
    /// there is none.
    pub fn start(target: u16, rules: &Path) -> Option<Self> {
        let installed = Command::new("prometheus")
            .arg("--version")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        if installed.is_err() {
            skip("prometheus is not installed");
            return None;
        }
        let folder = tempfile::tempdir().expect("a temporary folder");
        let config = format!(
            "global: {{ scrape_interval: 200ms, scrape_timeout: 200ms, evaluation_interval: 1s }}\n\
             rule_files: [\"{}\"]\n\
             scrape_configs:\n  - job_name: phi-edge\n    static_configs: [{{ targets: [\"127.0.0.1:{target}\"] }}]\n",
            rules.display()
        );
        std::fs::write(folder.path().join("prometheus.yml"), config).expect("a configuration");
        let mut this = Self {
            port: 0,
            folder,
            process: None,
        };
        // Another process may take a port between its choice and Prometheus' start.
        for _ in 0..5 {
            this.port = free_port();
            this.process = Some(this.spawn());
            if this.answers() {
                return Some(this);
            }
        }
        panic!("prometheus does not start:\n{}", this.log());
    }

    /// The samples that an expression gives now; those that are no number left out.
    ///
    /// # Errors
    /// Prometheus' own words.
    pub fn query(&self, expression: &str) -> Result<Vec<(Value, f64)>, String> {
        let answer = self.get(&format!("/api/v1/query?query={}", encoded(expression)))?;
        if answer["status"] != "success" {
            return Err(answer["error"].to_string());
        }
        let results = answer["data"]["result"].as_array().cloned().unwrap_or_default();
        Ok(results
            .into_iter()
            .filter_map(|sample| {
                let value: f64 = sample["value"][1].as_str()?.parse().ok()?;
                (!value.is_nan()).then(|| (sample["metric"].clone(), value))
            })
            .collect())
    }

    /// What a path of its API says.
    ///
    /// # Errors
    /// It does not answer, or not in JSON.
    pub fn get(&self, path: &str) -> Result<Value, String> {
        // HTTP/1.0: an answer in one piece.
        let (_, body) =
            http(self.port, &format!("GET {path} HTTP/1.0")).map_err(|error| error.to_string())?;
        serde_json::from_str(&body).map_err(|error| format!("{error}: {body}"))
    }

    fn spawn(&self) -> Child {
        let folder = self.folder.path();
        let log = std::fs::File::create(folder.join("log")).expect("a log");
        Command::new("prometheus")
            .arg(format!(
                "--config.file={}",
                folder.join("prometheus.yml").display()
            ))
            .arg(format!("--storage.tsdb.path={}", folder.join("data").display()))
            .arg(format!("--web.listen-address=127.0.0.1:{}", self.port))
            .arg("--log.level=warn")
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("prometheus starts")
    }

    fn answers(&mut self) -> bool {
        let deadline = Instant::now() + TIMEOUT;
        while Instant::now() < deadline {
            if http(self.port, "GET /-/ready HTTP/1.0").is_ok_and(|(status, _)| status == 200) {
                return true;
            }
            let ended = self
                .process
                .as_mut()
                .is_none_or(|process| process.try_wait().is_ok_and(|status| status.is_some()));
            if ended {
                return false;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        false
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        if let Some(mut process) = self.process.take() {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

fn encoded(text: &str) -> String {
    text.bytes().fold(String::new(), |mut out, byte| {
        if byte.is_ascii_alphanumeric() {
            out.push(char::from(byte));
        } else {
            // Writing to a String can't fail.
            let _ = write!(out, "%{byte:02X}");
        }
        out
    })
}
