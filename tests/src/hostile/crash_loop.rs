//! kill -9 at random moments of catching up with what waits at the broker: each message counts once.

use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use phi_edge_mqtt::Client;
use serde_json::json;

use super::Plan;
use super::attack::COUNTED;
use super::report::Report;
use super::stage::{ANONYMOUS, KEEPS_ALL, Setting, Stage};
use super::watch::{Seen, Sum};
use crate::chance::Chance;
use crate::daemon::TIMEOUT;
use crate::{Mosquitto, client};

/// Messages of a window.
const WINDOW_MESSAGES: u64 = 100;
/// Statistics are published at most every two seconds.
const STATS_PAUSE: Duration = Duration::from_secs(3);
/// Between two reads of the log that wait for a connection.
const LOG_POLL_INTERVAL: Duration = Duration::from_millis(2);
/// Messages that are published between two that are waited for, so that what the broker has not taken does not pile up.
const PUBLISH_BURST: u64 = 64;

/// How often the daemon dies, and over what.
#[derive(Debug, Clone, Copy)]
pub struct CrashLoop {
    /// Kills in all.
    pub kills: u64,
    /// Messages of a batch, which waits at the broker before the daemon starts; rounded up to whole windows.
    pub batch: u64,
    /// The most kills while one batch is caught up with; the least is half of it.
    pub kills_a_batch: u64,
    /// mosquitto's `max_inflight_messages`; 0 is no bound.
    pub inflight: u16,
    /// All messages have the same content: only packet ids tell them apart.
    pub equal: bool,
    /// After this time no further batch begins.
    pub time: Duration,
    /// Decides about the moments of the kills.
    pub seed: u64,
}

impl CrashLoop {
    /// Runs it; what can't be set up is a broken bound, too.
    pub async fn run(self) -> Report {
        let mut report = Report {
            scenario: "crash-loop".to_owned(),
            seed: self.seed,
            ..Report::default()
        };
        let begun = Instant::now();
        if let Err(error) = self.run_into(&mut report).await {
            report.broken.push(format!("{error:#}"));
        }
        report.time = begun.elapsed();
        report
    }

    async fn run_into(self, report: &mut Report) -> Result<()> {
        let mut chance = Chance::seeded(self.seed);
        let mut stage = self.stage().await?;
        let deadline = Instant::now() + self.time;
        let mut said = Sum::default();
        let mut kills = 0;
        while kills < self.kills && Instant::now() < deadline {
            let mut folder = stage.kill()?;
            self.publish(stage.port, &mut said).await?;
            let most = self.kills_a_batch.min(self.kills - kills);
            for _ in 0..most / 2 + chance.below(most / 2 + 1) + most % 2 {
                let log = folder.path().join("log");
                let from = log.metadata().map_or(0, |file| file.len());
                stage.start(folder);
                connected(&log, from).await;
                // Mostly before all is caught up with: what the broker sends again adds up from death to death.
                let longest = Duration::from_millis(chance.pick(&[150, 300, 450, 700]));
                tokio::time::sleep(chance.time(Duration::ZERO..longest)).await;
                folder = stage.kill()?;
                kills += 1;
            }
            stage.start(folder);
            if !self.counts_exactly(&mut stage, said, kills, report).await {
                break;
            }
        }
        report.attacks += kills;
        report.messages += said.messages;
        report.settled += stage.watch.seen().sum(COUNTED).messages.min(said.messages);
        let (dead, peak) = (report.dead_letters, report.peak);
        stage.conclude(report);
        report.dead_letters += dead;
        report.peak = report.peak.max(peak);
        Ok(())
    }

    async fn stage(self) -> Result<Stage> {
        let lines = format!("{ANONYMOUS}{KEEPS_ALL}max_inflight_messages {}\n", self.inflight);
        let mosquitto = Mosquitto::with(&lines, |_| {}).context("mosquitto is not installed")?;
        let rule = format!(
            "topics = [\"plant/#\"]\nfields = {{ n = \"/n\" }}\nfacts_only = true\n\
             window = {{ kind = \"count\", messages = {WINDOW_MESSAGES} }}\n"
        );
        let rules = [(COUNTED, rule)];
        let setting = Setting {
            rules: &rules,
            // A line for each window would make the log long, in which connections are looked for.
            settings: &["log.level=warn,phi_edge_mqtt=info".to_owned()],
            ..Setting::default()
        };
        Stage::at(mosquitto, setting).await
    }

    /// Publishes a batch while the daemon is away; the broker has all of it when this returns.
    async fn publish(self, port: u16, said: &mut Sum) -> Result<()> {
        let mut device = client(port).await;
        let batch = self.batch.next_multiple_of(WINDOW_MESSAGES);
        for count in 1..=batch {
            let number = if self.equal { 1 } else { said.messages };
            let topic = if self.equal { 0 } else { number % 10 };
            let is_waited_for = count.is_multiple_of(PUBLISH_BURST) || count == batch;
            publish_number(&mut device, &format!("plant/{topic}"), number, is_waited_for).await?;
            said.messages += 1;
            said.numbers += number;
        }
        device.close().await;
        Ok(())
    }

    /// Waits until the events come to what was said, and requires that nothing was counted beyond it.
    async fn counts_exactly(self, stage: &mut Stage, said: Sum, kills: u64, report: &mut Report) -> bool {
        let caught_up = |seen: &Seen| seen.sum(COUNTED).messages >= said.messages;
        let waited = stage.watch.until("all events", TIMEOUT * 2, caught_up).await;
        // What counts twice stands in the next window: more messages than were said, or a window that is open.
        tokio::time::sleep(STATS_PAUSE).await;
        let closed = |seen: &Seen| seen.stats["rules"]["held"] == 0;
        let closed = stage
            .watch
            .until("closed windows", Duration::from_secs(8), closed)
            .await;
        let sum = stage.watch.seen().sum(COUNTED);
        let exact = sum == said && waited.is_ok() && closed.is_ok();
        report.require(exact, || {
            let held = stage.watch.seen().stats["rules"]["held"].clone();
            format!("{self:?}, after {kills} kills: {said:?} came to {sum:?}, {held} held")
        });
        exact
    }
}

pub(super) async fn run(plan: Plan, report: &mut Report) -> Result<()> {
    let mut chance = Chance::seeded(plan.seed);
    for inflight in [0, 20] {
        let crash_loop = CrashLoop {
            kills: plan.of(8, 500),
            batch: plan.of(6000, 10_000),
            kills_a_batch: plan.of(12, 16),
            inflight,
            equal: false,
            time: plan.of(Duration::from_secs(40), Duration::from_hours(1)),
            seed: chance.number(),
        };
        crash_loop.run_into(report).await?;
    }
    Ok(())
}

async fn publish_number(device: &mut Client, topic: &str, number: u64, is_waited_for: bool) -> Result<()> {
    let payload = json!({"n": number}).to_string();
    if is_waited_for {
        device.publish(topic, payload, None).await?;
    } else {
        device.publish_later(topic, payload)?;
    }
    Ok(())
}

/// Waits until the process that writes this log has a connection, so that its death comes while it catches up.
async fn connected(log: &Path, from: u64) {
    let begun = Instant::now();
    while begun.elapsed() < TIMEOUT {
        if written(log, from).contains(" connected") {
            return;
        }
        tokio::time::sleep(LOG_POLL_INTERVAL).await;
    }
}

/// What was written behind this place.
fn written(log: &Path, from: u64) -> String {
    let mut text = Vec::new();
    let _ = std::fs::File::open(log).and_then(|mut file| {
        file.seek(SeekFrom::Start(from))?;
        file.read_to_end(&mut text)
    });
    String::from_utf8_lossy(&text).into_owned()
}
