//! The demonstration behind `cargo xtask demo`: `phi-edge-demo MODEL`.
//!
//! Starts the daemon with its embedded broker and a rule, asks it something as a client would, and lets simulated machines
//! send readings over MQTT, until one of them runs hot and the rule says so.

#![allow(clippy::print_stdout)]

mod burst;

use std::io::Write as _;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use phi_edge_mqtt::{Client, ClientOptions};
use serde_json::{Value, json};

const BASE: &str = "phi-edge/v1/demo";
/// The whole demonstration takes seconds; on a slow machine it must still end.
const TIMEOUT: Duration = Duration::from_secs(30);

fn main() -> Result<()> {
    let model = std::env::args_os()
        .nth(1)
        .map(PathBuf::from)
        .context("usage: phi-edge-demo MODEL")?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(demo(model))
}

async fn demo(model: PathBuf) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let port = free_port()?;
    let rules = folder.path().join("rules.d");
    std::fs::create_dir(&rules)?;
    std::fs::write(rules.join("overheating.toml"), burst::RULE)?;
    println!("Starting phi-edge with its embedded broker on port {port} …");
    let mut daemon = Daemon::start(&model, port, folder.path())?;
    let mut client = connect(port, &mut daemon).await?;
    let status = ready(&mut client).await?;
    println!(
        "Ready: model {}, context of {} tokens, on {}.",
        status["model"].as_str().unwrap_or("?"),
        status["context"],
        status["provider"].as_str().unwrap_or("?")
    );
    println!(
        "This is a demonstration model of 2 million parameters: it words facts and knows nothing else.\n"
    );

    client.subscribe(&format!("{BASE}/response/#")).await?;
    for (id, question) in [("demo-1", "Who are you?"), ("demo-2", "Was kannst du?")] {
        println!("> {question}");
        ask(&mut client, id, question).await?;
    }

    println!("\nA rule watches over machines (overheating.toml):");
    for line in burst::RULE.lines() {
        println!("  {line}");
    }
    client.subscribe(&format!("{BASE}/event/#")).await?;
    println!("\nThree machines send readings over MQTT:");
    let fault = machines(&mut client).await?;
    event(&mut client, fault).await?;
    client.close().await;
    daemon.end()?;
    println!("\nThe same by hand, while `phi-edge run` is up:");
    println!("  mosquitto_rr -t {BASE}/request -e {BASE}/response/1 -m 'Who are you?'");
    println!("  mosquitto_sub -v -t {BASE}/event/#");
    Ok(())
}

/// A port that was free a moment ago.
fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// The daemon's binary, beside this program.
fn daemon_beside() -> Result<PathBuf> {
    let name = format!("phi-edge{}", std::env::consts::EXE_SUFFIX);
    let binary = std::env::current_exe()?.with_file_name(name);
    ensure!(binary.exists(), "{} is not built", binary.display());
    Ok(binary)
}

/// The daemon as a process.
struct Daemon(Child);

impl Daemon {
    fn start(model: &Path, port: u16, folder: &Path) -> Result<Self> {
        let mut command = Command::new(daemon_beside()?);
        command.arg("run");
        for setting in [
            format!("model.path={}", model.display()),
            format!("store.path={}", folder.display()),
            "node.name=demo".to_owned(),
            "mqtt.embedded=true".to_owned(),
            format!("mqtt.embedded_listen=127.0.0.1:{port}"),
            format!("node.rules_dir={}", folder.join("rules.d").display()),
            "log.level=warn".to_owned(),
        ] {
            command.args(["--set", &setting]);
        }
        Ok(Self(
            command
                .stdout(Stdio::null())
                .spawn()
                .context("phi-edge can't be started")?,
        ))
    }

    fn end(mut self) -> Result<()> {
        if cfg!(unix) {
            let id = self.0.id().to_string();
            let sent = Command::new("kill").args(["-s", "TERM", &id]).status()?;
            ensure!(sent.success(), "kill ended with {sent}");
        } else {
            self.0.kill()?;
        }
        let status = self.0.wait()?;
        if cfg!(unix) && !status.success() {
            bail!("phi-edge ended with {status}");
        }
        Ok(())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

async fn connect(port: u16, daemon: &mut Daemon) -> Result<Client> {
    let deadline = Instant::now() + TIMEOUT;
    loop {
        let options = ClientOptions {
            host: "127.0.0.1".into(),
            port,
            client_id: "phi-edge-demo".into(),
            ..ClientOptions::default()
        };
        match Client::connect(options).await {
            Ok(client) => return Ok(client),
            Err(error) if Instant::now() > deadline => return Err(error.into()),
            Err(_) => {
                if let Some(status) = daemon.0.try_wait()? {
                    bail!("phi-edge ended with {status}");
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

async fn ready(client: &mut Client) -> Result<Value> {
    client.subscribe(&format!("{BASE}/status")).await?;
    loop {
        let message = client
            .receive(TIMEOUT)
            .await?
            .context("the daemon does not get ready")?;
        let status: Value = serde_json::from_slice(&message.payload)?;
        if status["state"] == "ready" {
            return Ok(status);
        }
    }
}

/// Sends a prompt and prints the answer as it streams in.
async fn ask(client: &mut Client, id: &str, prompt: &str) -> Result<()> {
    let request = json!({"id": id, "prompt": prompt, "stream": true, "max_tokens": 120});
    client
        .publish(&format!("{BASE}/request"), request.to_string(), None)
        .await?;
    let mut shown = String::new();
    loop {
        let message = client.receive(TIMEOUT).await?.context("no answer came")?;
        let body: Value = serde_json::from_slice(&message.payload).unwrap_or_default();
        if body["id"] != id {
            continue;
        }
        match message.property("kind") {
            Some("chunk") => {
                let delta = body["delta"].as_str().unwrap_or_default();
                shown.push_str(delta);
                print!("{delta}");
                std::io::stdout().flush()?;
            }
            Some("final") => {
                let text = body["text"].as_str().unwrap_or_default();
                println!("{}", text.strip_prefix(shown.as_str()).unwrap_or_default());
                println!(
                    "  [{} + {} tokens, {} ms to the first, {} ms for the rest]",
                    body["usage"]["prompt_tokens"],
                    body["usage"]["completion_tokens"],
                    body["timing"]["prefill_ms"],
                    body["timing"]["decode_ms"]
                );
                return Ok(());
            }
            _ => bail!("{}", body["error"]["message"]),
        }
    }
}

/// Lets the machines publish; tells when the last one did, which reports a fault.
async fn machines(client: &mut Client) -> Result<Instant> {
    for reading in burst::readings() {
        let payload = reading.payload().to_string();
        let note = if reading.is_fault() { "   too warm" } else { "" };
        println!("  {:28} {payload}{note}", reading.topic());
        client.publish(&reading.topic(), payload, None).await?;
    }
    Ok(Instant::now())
}

/// Shows the rule's event: the facts that code computed and the model's words.
async fn event(client: &mut Client, fault: Instant) -> Result<()> {
    let event: Value = loop {
        let message = client.receive(TIMEOUT).await?.context("the rule says nothing")?;
        if message.topic.starts_with(&format!("{BASE}/event/")) {
            println!("\n{} after {} ms:", message.topic, fault.elapsed().as_millis());
            break serde_json::from_slice(&message.payload)?;
        }
    };
    let (window, facts) = (&event["window"], &event["stats"]["temperature"]);
    println!(
        "  facts: {} of {}, {} messages, ended {}: min {}, max {}, mean {}, last {}",
        event["rule"],
        event["group"],
        window["messages"],
        window["reason"],
        facts["min"],
        facts["max"],
        facts["mean"],
        facts["last"]
    );
    let text = event["text"]
        .as_str()
        .with_context(|| format!("the event has no words: {}", event["error"]))?;
    println!("  words: {text}");
    if window["reason"] != "early" || facts["max"] != 81.6 {
        bail!("this is not the event that was expected: {event}");
    }
    Ok(())
}
