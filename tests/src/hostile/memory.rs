//! Fifty hostile clients, 1 GiB of memory for the node, and one honest client that must hardly notice.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use super::Plan;
use super::asker::Asker;
use super::attack::{self, Attack, Force};
use super::cgroup::Memory;
use super::clients;
use super::report::Report;
use super::stage::{ANONYMOUS, KEEPS_ALL, Setting, Stage};
use crate::Mosquitto;
use crate::chance::Chance;
use crate::daemon::TIMEOUT;
use crate::median;

/// What the node may use.
pub(super) const LIMIT: u64 = 1 << 30;
/// By how much the honest client's median latency may grow.
const SLOWDOWN: u32 = 3;
/// Of an answer of the honest client: enough that its latency is not all noise.
const HONEST_TOKENS: u32 = 32;
/// Between two questions of the honest client.
const HONEST_PAUSE: Duration = Duration::from_millis(100);

pub(super) async fn run(plan: Plan, group: Memory, report: &mut Report) -> Result<()> {
    let mut chance = Chance::seeded(plan.seed);
    let lines = format!("{ANONYMOUS}{KEEPS_ALL}");
    let mosquitto = Mosquitto::with(&lines, |_| {}).context("mosquitto is not installed")?;
    let rules = attack::rules();
    let setting = Setting {
        rules: &rules,
        under: Some(group.command(&crate::phi_edge())),
        ..Setting::default()
    };
    let mut stage = Stage::at(mosquitto, setting).await?;
    let mut honest = Asker::start(stage.port, "honest", false)
        .await?
        .for_tokens(HONEST_TOKENS);
    let quiet_time = plan.of(Duration::from_secs(4), Duration::from_secs(30));
    let end = Instant::now() + quiet_time;
    honest.run_until(end, HONEST_PAUSE).await;
    honest.finish(TIMEOUT).await;
    let quiet = median(std::mem::take(&mut honest.accounts.latencies));

    let time = plan.time(Duration::from_secs(12));
    let force = Force {
        clients: 50,
        pause: Duration::from_millis(100)..Duration::from_secs(1),
        // What the default limits.max_payload and mqtt.max_packet let through, and a little more.
        largest: 2 << 20,
    };
    let attack = Attack::start(stage.port, &force, chance.number(), time);
    let toll = attack.toll();
    let end = Instant::now() + time;
    let is_alive = clients::hold_out(&mut stage, &mut honest, HONEST_PAUSE, end).await;
    let attacked = median(honest.accounts.latencies.iter().copied());
    if is_alive {
        attack.end().await;
        let patience = plan.of(clients::SHORT_PATIENCE, TIMEOUT * 2);
        clients::settle(&mut stage, &toll, patience, report).await;
    }
    report.latency = Some((quiet, attacked));
    clients::count(report, &toll, &honest);
    report.require(
        attacked <= quiet * SLOWDOWN || attacked < plan.of(Duration::from_millis(400), Duration::ZERO),
        || format!("the honest client waits {attacked:?}, {quiet:?} without the attack"),
    );
    let killed = group.killed();
    report.require(killed == 0, || format!("{killed} times out of memory"));
    stage.conclude(report);
    report.peak = report.peak.max(if killed > 0 { LIMIT } else { 0 });
    Ok(())
}
