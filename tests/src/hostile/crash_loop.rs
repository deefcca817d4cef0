//! kill -9 at random moments of catching up with what waits at the broker: each message counts once.

use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use serde_json::json;

use super::Plan;
use super::attack::COUNTED;
use super::chance::Chance;
use super::report::Report;
use super::stage::{ANONYMOUS, KEEPS_ALL, Setting, Stage};
use super::watch::Sum;
use crate::daemon::PATIENCE;
use crate::{Mosquitto, client};

/// Messages of a window.
const WINDOW: u64 = 100;
/// Statistics are published at most every two seconds.
const STATS_PAUSE: Duration = Duration::from_secs(3);
/// Between two looks for a connection in the log.
const LOOK_INTERVAL: Duration = Duration::from_millis(2);

/// How much, at each broker.
#[derive(Clone, Copy)]
struct Counts {
    /// Kills in all.
    kills: u64,
    /// Messages that wait.
    batch: u64,
    /// The most kills while one batch is caught up with.
    each: u64,
}

pub(super) async fn run(plan: Plan, report: &mut Report) -> Result<()> {
    let counts = plan.of(
        Counts {
            kills: 8,
            batch: 6000,
            each: 12,
        },
        Counts {
            kills: 500,
            batch: 10_000,
            each: 16,
        },
    );
    let mut chance = Chance::seeded(plan.seed);
    for under_way in [0, 20] {
        let deadline = Instant::now() + plan.of(Duration::from_secs(40), Duration::from_hours(1));
        at(under_way, counts, chance.branch(), deadline, report).await?;
    }
    Ok(())
}

/// At a broker that has so many messages under way at once, 0 being as many as the node takes.
async fn at(
    under_way: u32,
    counts: Counts,
    mut chance: Chance,
    deadline: Instant,
    report: &mut Report,
) -> Result<()> {
    let lines = format!("{ANONYMOUS}{KEEPS_ALL}max_inflight_messages {under_way}\n");
    let mosquitto = Mosquitto::with(&lines, |_| {}).context("mosquitto is not installed")?;
    let rule = format!(
        "topics = [\"plant/#\"]\nfields = {{ n = \"/n\" }}\nfacts_only = true\n\
         window = {{ kind = \"count\", messages = {WINDOW} }}\n"
    );
    let rules = [(COUNTED, rule)];
    let setting = Setting {
        rules: &rules,
        // A line for each window would make the log long, in which connections are looked for.
        settings: &["log.level=warn,phi_edge_mqtt=info".to_owned()],
        ..Setting::default()
    };
    let mut stage = Stage::at(mosquitto, setting).await?;
    let mut wanted = Sum::default();
    let mut kills = 0;
    while kills < counts.kills && Instant::now() < deadline {
        let mut folder = stage.kill()?;
        wait_at_broker(stage.port, counts.batch, &mut wanted).await?;
        for _ in 0..counts.each / 2 + chance.below(counts.each / 2 + 1) {
            let log = folder.path().join("log");
            let from = length(&log);
            stage.start(folder);
            connected(&log, from).await;
            // Mostly before all is caught up with: what the broker sends again adds up from death to death.
            let longest = Duration::from_millis(chance.pick(&[150, 300, 450, 700]));
            let pause = chance.time(longest / 4..longest);
            tokio::time::sleep(pause).await;
            folder = stage.kill()?;
            kills += 1;
        }
        stage.start(folder);
        let caught_up = |seen: &super::watch::Seen| seen.sum(COUNTED).messages >= wanted.messages;
        let waited = stage.watch.until("all events", PATIENCE * 2, caught_up).await;
        // What counts twice stands in the next window: more messages than were said, or a window that is open.
        tokio::time::sleep(STATS_PAUSE).await;
        let held = |seen: &super::watch::Seen| seen.stats["rules"]["held"] == 0;
        let closed = stage
            .watch
            .until("closed windows", Duration::from_secs(8), held)
            .await;
        let sum = stage.watch.seen().sum(COUNTED);
        let exact = sum == wanted && waited.is_ok() && closed.is_ok();
        report.require(exact, || {
            let held = stage.watch.seen().stats["rules"]["held"].clone();
            format!("in flight {under_way}, {kills} kills: {wanted:?} came to {sum:?}, {held} held")
        });
        if !exact {
            break;
        }
    }
    report.attacks += kills;
    report.messages += wanted.messages;
    report.settled += stage.watch.seen().sum(COUNTED).messages.min(wanted.messages);
    let (dead, peak) = (report.dead_letters, report.peak);
    stage.conclude(report);
    report.dead_letters += dead;
    report.peak = report.peak.max(peak);
    Ok(())
}

/// Publishes while the node is away.
async fn wait_at_broker(port: u16, batch: u64, wanted: &mut Sum) -> Result<()> {
    let mut device = client(port).await;
    for count in 1..=batch {
        let number = wanted.messages;
        let payload = json!({"n": number}).to_string();
        let topic = format!("plant/{}", number % 10);
        if count.is_multiple_of(100) || count == batch {
            // What the broker has not taken does not pile up here.
            device.publish(&topic, payload, None).await?;
        } else {
            device.publish_later(&topic, payload)?;
        }
        wanted.messages += 1;
        wanted.numbers += number;
    }
    device.close().await;
    Ok(())
}

/// Waits until the process that writes this log has a connection, so that its death comes while it catches up.
async fn connected(log: &Path, from: u64) {
    let begun = Instant::now();
    while begun.elapsed() < PATIENCE {
        if written(log, from).contains(" connected") {
            return;
        }
        tokio::time::sleep(LOOK_INTERVAL).await;
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

fn length(log: &Path) -> u64 {
    log.metadata().map_or(0, |file| file.len())
}
