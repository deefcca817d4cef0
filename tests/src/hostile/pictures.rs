//! Damaged and hostile pictures: one outcome each, and memory within a bound.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::json;

use super::Plan;
use super::asker::Asker;
use super::clients::SHORT_PATIENCE;
use super::picture_files::PictureFiles;
use super::report::Report;
use super::stage::{Broker, SLICE, Setting, Stage};
use crate::chance::Chance;
use crate::daemon::{BASE, TIMEOUT};
use crate::{client, vision_model};

/// Pictures under way at once.
const WINDOW: usize = 20;
/// What a node may take above idle: twice the default of `limits.image_pixels` in RGB.
const MEMORY: u64 = 2 * 25_000_000 * 3;

pub(super) async fn run(plan: Plan, report: &mut Report) -> Result<()> {
    let mut chance = Chance::seeded(plan.seed);
    let files = PictureFiles::new(&mut chance)?;
    let model = vision_model();
    // Many are sound. What is remembered of those has bounds of its own, and is no part of what damaged ones may cost.
    let settings = [
        "limits.max_payload=8MiB",
        "mqtt.max_packet=9MiB",
        "runtime.image_memory=0",
        "runtime.prefix_cache=false",
    ]
    .map(str::to_owned);
    let setting = Setting {
        settings: &settings,
        model: Some(model.path()),
        ..Setting::default()
    };
    let mut stage = Stage::with(Broker::Mosquitto, "", setting).await?;
    let mut mallory = client(stage.port).await;
    let mut honest = Asker::start(stage.port, "honest", false).await?;
    honest.run(3, 1, Instant::now() + TIMEOUT).await;
    let topic = format!("{BASE}/request/mallory");
    let ask = |id: &str, file: &[u8]| {
        let image = BASE64_STANDARD.encode(file);
        json!({"id": id, "prompt": "What?", "max_tokens": 1, "images": [image]}).to_string()
    };
    // The first picture pays for what all later ones have.
    mallory
        .publish(&topic, ask("first", &files.sound(&mut chance)), None)
        .await?;
    stage
        .until("the first picture's answer", TIMEOUT, |seen| {
            seen.outcomes.contains_key("mallory/first")
        })
        .await?;
    let idle = stage.reset_peak().context("no memory of the process")?;
    let count = plan.of(60, 2000);
    let mut open: BTreeMap<String, Instant> = BTreeMap::new();
    let mut sent = 0;
    let end = Instant::now() + plan.of(Duration::from_mins(1), Duration::from_mins(20));
    while (sent < count || !open.is_empty()) && Instant::now() < end && stage.exited().is_none() {
        while open.len() < WINDOW && sent < count {
            let id = format!("p{sent}");
            mallory
                .publish(&topic, ask(&id, &files.hostile(&mut chance)?), None)
                .await?;
            open.insert(format!("mallory/{id}"), Instant::now());
            sent += 1;
        }
        honest.run(1, 1, Instant::now() + SLICE / 10).await;
        let seen = stage.watch.seen();
        open.retain(|key, _| !seen.outcomes.contains_key(key));
    }
    honest.finish(SHORT_PATIENCE).await;
    report.attacks = sent;
    report.messages = sent + honest.accounts.asked;
    report.settled = sent - open.len() as u64 + honest.accounts.answered;
    report.require(open.is_empty(), || {
        format!(
            "{} pictures have no outcome: {:?}",
            open.len(),
            open.keys().next()
        )
    });
    let twice = stage
        .watch
        .seen()
        .outcomes
        .values()
        .filter(|count| **count > 1)
        .count();
    report.require(twice == 0, || format!("{twice} outcomes came twice"));
    let missing = honest.missing().len() + honest.accounts.errors.len();
    report.require(missing == 0, || {
        format!("{missing} of the honest client's requests have no answer")
    });
    let peak = stage.measure();
    report.require(peak <= idle + MEMORY, || {
        format!(
            "{} MB of memory, {} above idle, of {} that are allowed",
            peak / 1_000_000,
            (peak - idle) / 1_000_000,
            MEMORY / 1_000_000
        )
    });
    let panics = stage.log_lines("panicked");
    report.require(panics == 0, || format!("{panics} panics in the log"));
    stage.conclude(report);
    Ok(())
}
