//! The contents of the bundle's files. What can't be gathered is replaced by the reason.

use std::fmt::Write as _;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use phi_edge_config::Config;
use phi_edge_mqtt::{Client, ClientOptions};
use phi_edge_onnx::Library;
use phi_edge_service::inspect;
use serde_json::{Value, json};

use crate::setup::args::ConfigArgs;
use crate::setup::link;
use crate::setup::model::ModelSetup;

/// The number of lines that are taken from the journal.
const JOURNAL_LINES: &str = "2000";
/// The time limit of a program that is run: `check` loads the model.
const PROGRAM_TIMEOUT: Duration = Duration::from_mins(3);
/// The time limit of an answer of the broker or of the metrics server.
const NETWORK_TIMEOUT: Duration = Duration::from_secs(3);
/// The size limit of a response of the metrics server.
const MAX_RESPONSE_BYTES: u64 = 4 << 20;

/// The versions of program, library and system, with processor and memory.
pub(super) fn versions(config: Option<&Config>) -> String {
    let mut out = format!(
        "phi-edge {} ({}, {})\n",
        env!("CARGO_PKG_VERSION"),
        std::env::consts::OS,
        std::env::consts::ARCH
    );
    let library = config.map(|config| ModelSetup::from_config(config, &[]).library);
    let library = match Library::find(library.flatten().as_deref()) {
        Ok(library) => format!("{} ({})", library.description(), library.path().display()),
        Err(error) => error.to_string(),
    };
    let cores =
        std::thread::available_parallelism().map_or_else(|error| error.to_string(), |n| n.to_string());
    let _ = writeln!(out, "library: {library}\nprocessors for this process: {cores}");
    let mut lines = |file: &str, wanted: &[&str]| {
        let text = std::fs::read_to_string(file).unwrap_or_default();
        let mut seen = Vec::new();
        for line in text.lines() {
            // One processor's lines stand for all.
            let key = line.split([':', '=']).next().unwrap_or_default().trim();
            if wanted.is_empty() || (wanted.contains(&key) && !seen.contains(&key)) {
                seen.push(key);
                let _ = writeln!(out, "{file}: {line}");
            }
        }
    };
    lines("/etc/os-release", &["PRETTY_NAME"]);
    lines("/proc/version", &[]);
    lines("/proc/cpuinfo", &["model name", "flags", "Features", "CPU part"]);
    lines(
        "/proc/meminfo",
        &["MemTotal", "MemAvailable", "SwapTotal", "SwapFree"],
    );
    lines("/proc/loadavg", &[]);
    lines("/sys/fs/cgroup/memory.max", &[]);
    lines("/sys/fs/cgroup/cpu.max", &[]);
    out
}

/// The output of `phi-edge check --offline` with the same configuration, in a separate process, since a faulty
/// library may crash it.
pub(super) fn check(args: &ConfigArgs) -> String {
    let Ok(program) = std::env::current_exe() else {
        return "this program's own path can't be told\n".to_owned();
    };
    let mut command = Command::new(program);
    command.args(["check", "--offline"]);
    if let Some(config) = &args.config {
        command.arg("--config").arg(config);
    }
    for (key, value) in &args.set {
        command.arg("--set").arg(format!("{key}={value}"));
    }
    output(command)
}

/// The last lines of the daemon's log, where there is a journal. Lines of the level trace may hold texts and are left
/// out.
pub(super) fn log() -> String {
    let mut command = Command::new("journalctl");
    command.args([
        "--unit",
        "phi-edge",
        "--priority",
        "info",
        "--lines",
        JOURNAL_LINES,
        "--no-pager",
        "--output",
        "short-iso-precise",
    ]);
    output(command)
        .lines()
        .filter(|line| !line.contains(" TRACE ") && !line.contains("\"level\":\"TRACE\""))
        .fold(String::new(), |out, line| out + line + "\n")
}

/// The sizes of the model's files, its manifest and its configuration.
pub(super) fn model(folder: &Path) -> String {
    let mut out = sizes(folder);
    for name in ["manifest.json", "genai_config.json"] {
        let text = std::fs::read_to_string(folder.join(name)).unwrap_or_else(|error| error.to_string());
        let _ = writeln!(out, "\n{name}:\n{text}");
    }
    out
}

/// The contents of the store, by number and size.
pub(super) fn store(folder: &Path) -> String {
    let mut out = sizes(folder);
    match inspect(folder) {
        Ok(held) => {
            let _ = writeln!(
                out,
                "\nto be answered: {}\noutcomes: {}\nundelivered: {}\nimages: {}\npictures of windows: {}\nmessages of windows: {}\nevents without words: {}\nbytes: {}\nset aside: {}",
                held.open,
                held.outcomes,
                held.undelivered,
                held.images,
                held.rule_pictures,
                held.rule_messages,
                held.rule_events,
                held.bytes,
                held.aside.len()
            );
        }
        // A daemon that runs has it for itself.
        Err(error) => {
            let _ = writeln!(out, "\n{error}");
        }
    }
    out
}

/// The retained status and stats at the broker.
pub(super) fn status(config: &Config) -> String {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let found = match runtime {
        Ok(runtime) => runtime.block_on(retained(config)),
        Err(error) => Err(error.to_string()),
    };
    let found = found.unwrap_or_else(|error| json!({"error": error}));
    serde_json::to_string_pretty(&found).unwrap_or_default() + "\n"
}

async fn retained(config: &Config) -> Result<Value, String> {
    let link = link::link(config, None).map_err(|fault| fault.message)?;
    let (mut host, mut port) = (link.host, link.port);
    if config.mqtt.embedded {
        host = config.mqtt.embedded_listen.ip().to_string();
        port = config.mqtt.embedded_listen.port();
    }
    // A different client id, so that a running daemon keeps its session.
    let options = ClientOptions {
        client_id: format!("{}-support-{}", link.client_id, std::process::id()),
        host,
        port,
        credentials: link.credentials,
        tls: link.tls,
        session: None,
    };
    let mut client = tokio::time::timeout(NETWORK_TIMEOUT, Client::connect(options))
        .await
        .map_err(|_| "the broker does not answer".to_owned())?
        .map_err(|error| error.to_string())?;
    let mut found = json!({});
    for what in ["status", "stats"] {
        let topic = format!("{}/{what}", config.node.base);
        client
            .subscribe(&topic)
            .await
            .map_err(|error| error.to_string())?;
        while let Ok(Some(message)) = client.receive(NETWORK_TIMEOUT).await {
            if message.topic == topic {
                found[what] = serde_json::from_slice(&message.payload).unwrap_or_default();
                break;
            }
        }
    }
    client.close().await;
    Ok(found)
}

/// The response of the daemon's metrics server.
pub(super) fn http(address: SocketAddr, path: &str) -> String {
    let ask = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect_timeout(&address, NETWORK_TIMEOUT)?;
        stream.set_read_timeout(Some(NETWORK_TIMEOUT))?;
        stream.set_write_timeout(Some(NETWORK_TIMEOUT))?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\n\r\n")?;
        let mut answer = String::new();
        stream.take(MAX_RESPONSE_BYTES).read_to_string(&mut answer)?;
        Ok(answer)
    };
    ask().unwrap_or_else(|error| format!("{address}: {error}\n"))
}

fn sizes(folder: &Path) -> String {
    let mut out = format!("{}\n", folder.display());
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) => return out + &format!("{error}\n"),
    };
    let mut files: Vec<(String, u64)> = entries
        .flatten()
        .map(|entry| {
            let size = entry.metadata().map_or(0, |metadata| metadata.len());
            (entry.file_name().to_string_lossy().into_owned(), size)
        })
        .collect();
    files.sort();
    for (name, size) in files {
        let _ = writeln!(out, "{size:>14}  {name}");
    }
    out
}

/// The output of a program, within [`PROGRAM_TIMEOUT`].
fn output(mut command: Command) -> String {
    let child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let child = match child {
        Ok(child) => child,
        Err(error) => return format!("{}: {error}\n", command.get_program().to_string_lossy()),
    };
    let (done, outcome) = mpsc::sync_channel(1);
    // Left behind if the program hangs: this process ends soon.
    std::thread::spawn(move || drop(done.send(child.wait_with_output())));
    match outcome.recv_timeout(PROGRAM_TIMEOUT) {
        Ok(Ok(output)) => {
            let printed = String::from_utf8_lossy(&output.stdout);
            let complained = String::from_utf8_lossy(&output.stderr);
            format!("{printed}{complained}{}\n", output.status)
        }
        Ok(Err(error)) => format!("{error}\n"),
        Err(_) => "it did not end in time\n".to_owned(),
    }
}
