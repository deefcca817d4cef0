//! Hostile clients at a broker of either kind: the node goes on, answers what it must, and counts each message.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::Result;

use super::Plan;
use super::asker::Asker;
use super::attack::{self, Attack, COUNTED, Force, Toll};
use super::report::Report;
use super::stage::{Broker, SLICE, Setting, Stage};
use crate::chance::Chance;
use crate::daemon::TIMEOUT;

/// The node's memory, with the embedded broker's in it.
const MEMORY: u64 = 1 << 30;
/// Between two questions of the honest client.
const HONEST_PAUSE: Duration = Duration::from_millis(50);
/// What is still open after an attack is settled by then.
pub(super) const SHORT_PATIENCE: Duration = Duration::from_secs(20);

pub(super) async fn run(plan: Plan, broker: Broker, report: &mut Report) -> Result<()> {
    let mut chance = Chance::seeded(plan.seed);
    let rules = attack::rules();
    let setting = Setting {
        rules: &rules,
        ..Setting::default()
    };
    let mut stage = Stage::with(broker, "", setting).await?;
    let mut honest = Asker::start(stage.port, "honest", false).await?;
    let time = plan.time(Duration::from_secs(8));
    let force = Force {
        clients: plan.of(10, 20),
        pause: Duration::from_millis(10)..Duration::from_millis(400),
        largest: 256 << 10,
    };
    let attack = Attack::start(stage.port, &force, chance.number(), time);
    let toll = attack.toll();
    let end = Instant::now() + time;
    if hold_out(&mut stage, &mut honest, HONEST_PAUSE, end).await {
        attack.end().await;
        settle(&mut stage, &toll, plan.of(SHORT_PATIENCE, TIMEOUT * 2), report).await;
    }
    count(report, &toll, &honest);
    stage.conclude(report);
    let peak = report.peak;
    report.require(peak <= MEMORY, || format!("{} MB of memory", peak >> 20));
    Ok(())
}

/// The honest client's part until `end`, and as long as the process lives, which is told.
pub(super) async fn hold_out(stage: &mut Stage, honest: &mut Asker, pause: Duration, end: Instant) -> bool {
    while Instant::now() < end && stage.exited().is_none() {
        let slice = (Instant::now() + SLICE).min(end);
        honest.run_until(slice, pause).await;
        stage.measure();
    }
    let is_alive = stage.exited().is_none();
    if is_alive {
        honest.finish(TIMEOUT).await;
    }
    is_alive
}

/// Waits until each request that can be read has an outcome, and each message for the rule that counts is counted.
pub(super) async fn settle(stage: &mut Stage, toll: &Toll, patience: Duration, report: &mut Report) {
    let mut expected = toll.expected();
    let requests = expected.len() as u64;
    let answered = stage
        .until("outcomes", patience, |seen| {
            expected.retain(|key| !seen.outcomes.contains_key(key));
            expected.is_empty()
        })
        .await;
    report.require(answered.is_ok(), || {
        format!(
            "{} of {requests} requests of hostile clients have no outcome, such as {:?}",
            expected.len(),
            expected.first()
        )
    });
    let said = toll.counted.load(Ordering::Relaxed);
    let most = said + toll.uncertain.load(Ordering::Relaxed);
    let counted = stage
        .until("counted messages", patience, |seen| {
            let sum = seen.sum(COUNTED);
            sum.messages + sum.dropped >= said
        })
        .await;
    let sum = stage.watch.seen().sum(COUNTED);
    report.require(counted.is_ok() && sum.messages + sum.dropped <= most, || {
        format!("{said} to {most} messages of hostile clients came to {sum:?}")
    });
    report.messages += requests + said;
    report.settled += requests - expected.len() as u64 + (sum.messages + sum.dropped).min(said);
}

/// The honest client's accounts, and the attack's.
pub(super) fn count(report: &mut Report, toll: &Toll, honest: &Asker) {
    report.attacks += toll.actions.load(Ordering::Relaxed);
    report.messages += honest.accounts.asked;
    report.settled += honest.accounts.answered;
    let missing = honest.missing();
    report.require(missing.is_empty(), || {
        format!("{} of the honest client's requests are lost", missing.len())
    });
    report.require(honest.accounts.differing == 0, || {
        "an honest client's outcomes differ".to_owned()
    });
    let errors = honest.accounts.errors.len();
    report.require(errors == 0, || {
        format!(
            "{errors} errors for the honest client, the first {:?}",
            honest.accounts.errors.first()
        )
    });
}
