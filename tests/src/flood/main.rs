//! The way of a request without the model: broker, link, store and service are the daemon's, the engine answers at once.
//!
//! Measures how many small requests pass through in a second, and how long an idle node takes from a request's publication
//! to the engine's start. `phi-edge-flood REQUESTS` starts mosquitto and the two processes; so does `cargo xtask flood`.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use phi_edge_engine::{Detokenizer, Finish, Interrupt, PrefillRuns, Summary, Symbol, TokenId};
use phi_edge_models::Message;
use phi_edge_mqtt::{
    Client, ClientOptions, Link, LinkConfig, LinkInputs, LinkState, RequestLimits, RuleTopics, Topics,
};
use phi_edge_service::{
    EngineCommand, EngineHandle, EngineInfo, LastEnd, Prompts, Service, ServiceConfig, Store, StoreConfig,
};
use phi_edge_tests::Mosquitto;
use phi_edge_wire::{State, Status};
use serde_json::json;
use tokio::sync::{mpsc, watch};

const BASE: &str = "phi-edge/v1/flood";
/// Requests that may be unanswered at once.
const WINDOW: usize = 1024;
/// Requests of the idle measurement, one at a time.
const IDLE: usize = 500;

/// Microseconds from a request's publication to the engine's start.
type Delays = Arc<Mutex<Vec<u64>>>;

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let mut next = |what: &str| arguments.next().with_context(|| format!("{what} is missing"));
    let first = next("how many requests")?;
    if let Ok(count) = first.parse() {
        return orchestrate(count);
    }
    let port: u16 = next("the port")?.parse()?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    match first.as_str() {
        "serve" => runtime.block_on(serve(port, next("the store's folder")?.into())),
        "ask" => runtime.block_on(ask(port, next("how many requests")?.parse()?)),
        other => bail!("{other:?} is no number of requests"),
    }
}

/// Broker, node and asker as processes of their own.
fn orchestrate(count: usize) -> Result<()> {
    let lines = "allow_anonymous true\nmax_queued_messages 0\nmax_inflight_messages 0\n";
    let broker = Mosquitto::with(lines, |_| {}).context("mosquitto is not installed")?;
    // Beside the build: a folder in memory would have no disk to wait for.
    let folder = tempfile::tempdir_in(std::env::current_dir()?)?;
    let port = broker.port.to_string();
    let program = std::env::current_exe()?;
    let mut node = Command::new(&program)
        .args(["serve", &port])
        .arg(folder.path())
        .stdin(Stdio::piped())
        .spawn()?;
    let asked = Command::new(&program)
        .args(["ask", &port, &count.to_string()])
        .status()?;
    drop(node.stdin.take());
    let served = node.wait()?;
    if !asked.success() || !served.success() {
        bail!("a part of it failed");
    }
    Ok(())
}

/// The daemon's parts around an engine that answers at once, until a line comes on standard input.
async fn serve(port: u16, folder: PathBuf) -> Result<()> {
    let delays = Delays::default();
    let (commands_tx, mut commands) = mpsc::channel::<EngineCommand>(64);
    let engine = EngineHandle::from_parts(
        commands_tx,
        Interrupt::new(),
        EngineInfo {
            context_length: 4096,
            memory: None,
            slots: 64,
        },
    );
    let seen = Arc::clone(&delays);
    std::thread::spawn(move || {
        while let Some(EngineCommand::Generate { request, sink }) = commands.blocking_recv() {
            let sent = request.prompt.iter().take(2).fold(0, |sent, symbol| {
                (sent << 32) | symbol.token().map_or(0, |id| u64::from(id.0))
            });
            seen.lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(micros().saturating_sub(sent));
            sink.text("done");
            sink.finish(Summary {
                finish: Finish::Stop,
                tokens: vec![TokenId(1)],
                image_tokens: 0,
                prompt_tokens: request.prompt.len(),
                cached_tokens: 0,
                draft_tokens: 0,
                accepted_draft_tokens: 0,
                queued: Duration::ZERO,
                prefill: Duration::ZERO,
                prefill_runs: PrefillRuns::default(),
                decode: Duration::ZERO,
            });
        }
    });
    let store = Store::open(
        StoreConfig {
            folder,
            max_bytes: 1 << 30,
            memory_fallback: false,
        },
        LastEnd::Innocent,
    )?;
    let health = store.health();
    let (replies_tx, replies) = mpsc::channel(256);
    let service = Service::start_with(
        ServiceConfig {
            queue: 4 * WINDOW,
            keep_outcomes: 10_000,
            model: "none".into(),
            ..ServiceConfig::default()
        },
        engine,
        Arc::new(Stamps),
        replies_tx,
        Some(store),
    );
    let status = Status::new(State::Ready, "flood");
    let config = LinkConfig {
        host: "127.0.0.1".into(),
        port,
        client_id: "flood".into(),
        credentials: None,
        tls: None,
        keep_alive: Duration::from_secs(30),
        session_expiry: Duration::from_hours(1),
        max_packet: 1 << 20,
        topics: Topics::new(BASE, vec![format!("{BASE}/response/#")]),
        node: "flood".into(),
    };
    let (_limits_tx, limits) = watch::channel(RequestLimits {
        max_payload: 1 << 16,
        max_tokens: 64,
        images: 2,
    });
    let (_service_tx, service_rx) = watch::channel(Some(service.clone()));
    let (_status_tx, status) = watch::channel(status);
    let (_stats_tx, stats) = watch::channel(serde_json::Value::Null);
    let (_open_tx, open) = watch::channel(true);
    let (_rules_tx, rules) = watch::channel(RuleTopics::default());
    let inputs = LinkInputs {
        service: service_rx,
        replies,
        status,
        stats,
        open,
        rules,
        limits,
    };
    let link = Link::start(config, inputs)?;
    link.state().wait_for(|state| *state == LinkState::Up).await?;
    // Until the other end of standard input is closed.
    let mut line = String::new();
    tokio::task::spawn_blocking(move || std::io::stdin().read_line(&mut line)).await??;
    let mut delays = std::mem::take(&mut *delays.lock().unwrap_or_else(PoisonError::into_inner));
    let idle = delays.len().min(IDLE);
    let mut idle: Vec<u64> = delays.drain(..idle).collect();
    idle.sort_unstable();
    let percentile = |p: usize| {
        idle.get((idle.len() * p / 100).min(idle.len().saturating_sub(1)))
            .copied()
    };
    println!(
        "{}",
        json!({
            "idle_start_us": {"p50": percentile(50), "p99": percentile(99)},
            "peak_rss_bytes": peak_memory(),
            "flushes": health.borrow().flushes,
            "served": service.stats().served,
            "undelivered": service.stats().undelivered,
        })
    );
    link.shutdown(Duration::from_secs(5)).await;
    service.close_store().await;
    Ok(())
}

/// Asks one at a time, then as fast as answers come.
async fn ask(port: u16, count: usize) -> Result<()> {
    let mut client = Client::connect(ClientOptions {
        host: "127.0.0.1".into(),
        port,
        client_id: "flood-asker".into(),
        ..ClientOptions::default()
    })
    .await?;
    client.subscribe(&format!("{BASE}/response/#")).await?;
    // Published once the node has subscribed.
    client.subscribe(&format!("{BASE}/status")).await?;
    client
        .receive(Duration::from_mins(1))
        .await?
        .context("the node is not there")?;
    for n in 0..IDLE {
        send(&mut client, &format!("idle{n}"))?;
        answer(&mut client).await?;
    }
    let begun = Instant::now();
    let (mut sent, mut answered) = (0, 0);
    while answered < count {
        while sent < count && sent - answered < WINDOW {
            send(&mut client, &format!("r{sent}"))?;
            sent += 1;
        }
        answer(&mut client).await?;
        answered += 1;
    }
    let seconds = begun.elapsed().as_secs_f64();
    #[expect(clippy::cast_precision_loss, reason = "far below 2^52 requests")]
    let rate = count as f64 / seconds;
    println!(
        "{}",
        json!({"requests": count, "seconds": seconds, "requests_per_s": rate})
    );
    Ok(())
}

/// Publishes a request of 200 bytes.
fn send(client: &mut Client, id: &str) -> Result<()> {
    let mut body = json!({"id": id, "prompt": format!("{} ", micros()), "max_tokens": 1});
    let missing = 200usize.saturating_sub(body.to_string().len());
    body["prompt"] = format!("{} {}", micros(), "x".repeat(missing)).into();
    Ok(client.publish_later(&format!("{BASE}/request"), body.to_string())?)
}

async fn answer(client: &mut Client) -> Result<()> {
    let message = client
        .receive(Duration::from_mins(1))
        .await?
        .context("no answer")?;
    if message.property("kind") != Some("final") {
        bail!("not an answer: {}", String::from_utf8_lossy(&message.payload));
    }
    Ok(())
}

/// Two ids hold the moment that the prompt begins with.
struct Stamps;

impl Prompts for Stamps {
    fn encode(&self, messages: &[Message]) -> Result<Vec<Symbol>, String> {
        let text = messages
            .last()
            .map(|message| message.content.as_str())
            .unwrap_or_default();
        let sent: u64 = text
            .split(' ')
            .next()
            .and_then(|sent| sent.parse().ok())
            .unwrap_or(0);
        let half = |bits: u64| Symbol::Token(TokenId(u32::try_from(bits & 0xffff_ffff).unwrap_or(0)));
        let mut ids = vec![half(sent >> 32), half(sent)];
        ids.extend(text.bytes().map(|byte| Symbol::Token(TokenId(u32::from(byte)))));
        Ok(ids)
    }

    fn encode_continuation(&self, messages: &[Message]) -> Result<Vec<Symbol>, String> {
        self.encode(messages)
    }

    fn detokenizer(&self) -> Box<dyn Detokenizer> {
        Box::new(Silent)
    }

    fn stop_ids(&self) -> Vec<TokenId> {
        Vec::new()
    }
}

struct Silent;

impl Detokenizer for Silent {
    fn push(&mut self, _: TokenId) -> String {
        String::new()
    }

    fn finish(&mut self) -> String {
        String::new()
    }
}

/// By the wall clock, which both processes share.
fn micros() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(0)
}

/// The most memory that this process had; Linux only.
fn peak_memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}
