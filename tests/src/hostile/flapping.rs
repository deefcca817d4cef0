//! A path that ends connections at random moments: nothing is lost, and no message is convicted for it.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use serde_json::json;

use super::Plan;
use super::asker::Asker;
use super::attack::COUNTED;
use super::proxy::{Fate, Proxy};
use super::raw::RawClient;
use super::report::Report;
use super::stage::{ANONYMOUS, KEEPS_ALL, Setting, Stage};
use super::wire::{Connect, Publish};
use crate::Mosquitto;
use crate::chance::Chance;
use crate::daemon::TIMEOUT;

/// A connection of at least this age is taken for a good one: the next one is made without a long wait.
const GOOD_LIFE: Duration = Duration::from_millis(5_100);

pub(super) async fn run(plan: Plan, report: &mut Report) -> Result<()> {
    let mut chance = Chance::seeded(plan.seed);
    let wanted = plan.of(8, 1000);
    let nodes = plan.of(1, 5);
    let deadline = Instant::now() + plan.of(Duration::from_secs(20), Duration::from_hours(1));
    let mut flapping = Vec::new();
    for _ in 0..nodes {
        let mut own = Report::default();
        let chance = chance.branch();
        flapping.push(tokio::spawn(async move {
            if let Err(error) = node(chance, wanted / nodes, deadline, &mut own).await {
                own.broken.push(format!("{error:#}"));
            }
            own
        }));
    }
    for node in flapping {
        let own = node.await?;
        report.deaths += own.deaths;
        report.attacks += own.deaths;
        report.messages += own.messages;
        report.settled += own.settled;
        report.dead_letters += own.dead_letters;
        report.exits += own.exits;
        report.peak = report.peak.max(own.peak);
        report.broken.extend(own.broken);
    }
    Ok(())
}

/// One node with a broker and a path of its own.
async fn node(mut chance: Chance, deaths: u64, deadline: Instant, report: &mut Report) -> Result<()> {
    let lines = format!("{ANONYMOUS}{KEEPS_ALL}");
    let mosquitto = Mosquitto::with(&lines, |_| {}).context("mosquitto is not installed")?;
    let port = mosquitto.port;
    let proxy = Proxy::start(port, Fate::default).await?;
    let rule = format!(
        "topics = [\"plant/#\"]\nfields = {{ n = \"/n\" }}\nfacts_only = true\n\
         window = {{ kind = \"count\", messages = {WINDOW} }}\n"
    );
    let rules = [(COUNTED, rule)];
    let setting = Setting {
        rules: &rules,
        node_port: Some(proxy.port),
        ..Setting::default()
    };
    let mut stage = Stage::at(mosquitto, setting).await?;
    let mut fates = chance.branch();
    proxy.change(move || fate(&mut fates));
    // The connection that is there was made before: it ends with the process's next word, or by the kill below.
    let folder = stage.kill()?;
    stage.start(folder);
    let mut asker = Asker::start(port, "anna", false).await?;
    let mut device = RawClient::connect(
        port,
        &Connect {
            client_id: "device".into(),
            clean: true,
            ..Connect::default()
        },
    )
    .await?;
    let mut said = 0_u64;
    let before = proxy.deaths();
    let mut gone = false;
    while proxy.deaths() - before < deaths && Instant::now() < deadline && !gone {
        let slice = Instant::now() + chance.time(Duration::from_millis(20)..Duration::from_millis(200));
        asker.run(2, 4, slice).await;
        for _ in 0..chance.below(4) {
            let publish = Publish {
                topic: "plant/a".into(),
                payload: json!({"n": said}).to_string().into_bytes(),
                qos: 1,
                ..Publish::default()
            };
            device.publish(&publish).await?;
            said += 1;
        }
        gone = stage.exited().is_some();
    }
    report.deaths = proxy.deaths() - before;
    proxy.change(Fate::default);
    // The last window is filled up, so that its event comes.
    while !said.is_multiple_of(WINDOW) {
        let publish = Publish {
            topic: "plant/a".into(),
            payload: json!({"n": said}).to_string().into_bytes(),
            qos: 1,
            ..Publish::default()
        };
        device.publish(&publish).await?;
        said += 1;
    }
    if !gone {
        asker.finish(TIMEOUT).await;
        let counted = |seen: &super::watch::Seen| seen.sum(COUNTED).messages >= said;
        let _ = stage.until("counted messages", TIMEOUT, counted).await;
    }
    let sum = stage.watch.seen().sum(COUNTED);
    let numbers = said * said.saturating_sub(1) / 2;
    report.require((sum.messages, sum.numbers) == (said, numbers), || {
        format!("{said} messages came to {sum:?}")
    });
    let missing = asker.missing().len();
    report.require(missing == 0, || format!("{missing} requests have no outcome"));
    let wrong = asker.accounts.errors.len() as u64 + asker.accounts.differing;
    report.require(wrong == 0, || format!("{wrong} outcomes are errors or differ"));
    let convicted = stage.watch.seen().dead_for("undeliverable");
    report.require(convicted == 0, || format!("{convicted} false verdicts"));
    report.messages = asker.accounts.asked + said;
    report.settled = asker.accounts.answered + sum.messages;
    stage.conclude(report);
    Ok(())
}

/// Messages of a window.
const WINDOW: u64 = 10;

/// After a while, or after some bytes of either side; now and then at once.
fn fate(chance: &mut Chance) -> Fate {
    match chance.below(8) {
        0..=2 => Fate {
            after: Some(GOOD_LIFE + chance.time(Duration::ZERO..Duration::from_millis(500))),
            ..Fate::default()
        },
        3 => Fate {
            after: Some(chance.time(Duration::ZERO..Duration::from_secs(2))),
            ..Fate::default()
        },
        4 | 5 => Fate {
            up: Some(chance.size(1..6000)),
            after: Some(GOOD_LIFE * 2),
            ..Fate::default()
        },
        _ => Fate {
            down: Some(chance.size(1..4000)),
            after: Some(GOOD_LIFE * 2),
            ..Fate::default()
        },
    }
}
