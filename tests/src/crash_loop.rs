//! A daemon that is killed again and again while it catches up with what waits at the broker: does each message count once?

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use phi_edge_mqtt::Client;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::counted::{Counted, CountedEvents};
use crate::{BASE, Daemon, Mosquitto, PATIENCE, client, demo_model, state};

/// Messages of a window; its event tells which were counted.
const WINDOW: u32 = 500;
/// A kill comes at a random moment of so long after the connection.
const SPREAD: Duration = Duration::from_millis(300);

/// How often the daemon dies, and over what.
#[derive(Debug, Clone, Copy)]
pub struct CrashLoop {
    /// Messages that wait at the broker at the beginning of a batch.
    pub messages: u32,
    /// Kills in all.
    pub kills: u32,
    /// Kills until the next batch is published.
    pub kills_a_batch: u32,
    /// mosquitto's `max_inflight_messages`; 0 is no bound.
    pub inflight: u16,
    /// All messages have the same content: only packet ids tell them apart.
    pub equal: bool,
    /// Of the random moments.
    pub seed: u64,
}

/// Runs it; `None` (and said so) where there is no mosquitto.
///
/// # Errors
/// A message was lost or counted twice, or something is missing.
pub async fn crash_loop(plan: CrashLoop) -> Result<Option<Value>> {
    let lines = format!(
        "allow_anonymous true\nmax_queued_messages 0\nmax_inflight_messages {}\n",
        plan.inflight
    );
    let Some(broker) = Mosquitto::with(&lines, |_| {}) else {
        return Ok(None);
    };
    let begun = Instant::now();
    let rules = tempfile::tempdir()?;
    for (name, topic, messages) in [("counts", "loop/reading", WINDOW), ("end", "loop/end", 1)] {
        let rule = format!(
            "topics = [\"{topic}\"]\nfields = {{ n = \"/n\" }}\nfacts_only = true\n\
             window = {{ kind = \"count\", messages = {messages} }}\n"
        );
        std::fs::write(rules.path().join(format!("{name}.toml")), rule)?;
    }
    let node = Node {
        port: broker.port,
        rules: format!("node.rules_dir={}", rules.path().display()),
    };
    let mut speaker = client(broker.port).await;
    let mut listener = client(broker.port).await;
    listener.subscribe(&format!("{BASE}/event/#")).await?;
    // The broker must know what is to wait for whom.
    let daemon = node.start(tempfile::tempdir()?);
    state(&mut speaker, "ready").await;
    let mut folder = daemon.kill();

    let mut events = CountedEvents::default();
    let mut said = Counted::default();
    let mut random = plan.seed | 1;
    let mut kills = 0;
    while kills < plan.kills {
        publish(&mut speaker, plan, &mut said).await?;
        for _ in 0..plan.kills_a_batch.min(plan.kills - kills) {
            folder = node.dies(folder, &mut random).await?;
            kills += 1;
        }
        events.listen(&mut listener, Instant::now()).await?;
    }
    let died = begun.elapsed();

    let daemon = node.start(folder);
    speaker.publish("loop/end", "{\"n\":1}", None).await?;
    let ended = |events: &CountedEvents| events.of("end").messages == 1;
    let all_seen = events.listen_until(&mut listener, PATIENCE * 2, ended).await?;
    ensure!(
        all_seen,
        "the last message was not counted; {:?} of {said:?} were",
        events.of("counts")
    );
    // What the last window holds is told when its rule goes.
    std::fs::remove_file(rules.path().join("counts.toml"))?;
    daemon.signal("HUP");
    let enough = |events: &CountedEvents| events.of("counts").messages >= said.messages;
    events.listen_until(&mut listener, PATIENCE / 6, enough).await?;
    events
        .listen(&mut listener, Instant::now() + Duration::from_millis(300))
        .await?;
    let counted = events.of("counts");
    ensure!(counted == said, "{counted:?} were counted of {said:?}, {plan:?}");
    Ok(Some(json!({
        "messages": said.messages,
        "counted": counted.messages,
        "kills": kills,
        "seconds_a_kill": died.as_secs_f64() / f64::from(kills.max(1)),
    })))
}

struct Node {
    port: u16,
    rules: String,
}

impl Node {
    fn start(&self, folder: TempDir) -> Daemon {
        let settings = [self.rules.as_str(), "log.level=info"];
        Daemon::start_in(folder, self.port, &demo_model(), &settings)
    }

    /// Starts it and kills it at a random moment after its connection.
    async fn dies(&self, folder: TempDir, random: &mut u64) -> Result<TempDir> {
        let log = folder.path().join("log");
        let before = log.metadata().map_or(0, |log| log.len());
        let daemon = self.start(folder);
        let deadline = Instant::now() + PATIENCE;
        while !says(&log, before, "session_present")? {
            ensure!(Instant::now() < deadline, "the daemon does not connect");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        let spread = u64::try_from(SPREAD.as_micros()).context("a short time")?;
        tokio::time::sleep(Duration::from_micros(next(random) % spread)).await;
        Ok(daemon.kill())
    }
}

/// Publishes a batch; the broker has all of it when this returns.
async fn publish(speaker: &mut Client, plan: CrashLoop, said: &mut Counted) -> Result<()> {
    for n in 1..=plan.messages {
        let number = if plan.equal { 1 } else { said.messages + 1 };
        said.add(number);
        let payload = format!("{{\"n\":{number}}}");
        if n.is_multiple_of(64) || n == plan.messages {
            speaker.publish("loop/reading", payload, None).await?;
        } else {
            speaker.publish_later("loop/reading", payload)?;
        }
    }
    Ok(())
}

/// Whether the log says it behind what it said before.
fn says(log: &Path, before: u64, what: &str) -> Result<bool> {
    let mut file = File::open(log)?;
    file.seek(SeekFrom::Start(before))?;
    let mut text = Vec::new();
    file.read_to_end(&mut text)?;
    Ok(String::from_utf8_lossy(&text).contains(what))
}

/// A random number (xorshift64).
fn next(random: &mut u64) -> u64 {
    *random ^= *random << 13;
    *random ^= *random >> 7;
    *random ^= *random << 17;
    *random
}
