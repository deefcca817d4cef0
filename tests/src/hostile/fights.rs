//! What looks like a fight over the session and is none: connections that end young, a second process, forged statuses.

use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use serde_json::json;

use super::Plan;
use super::asker::Asker;
use super::proxy::{Fate, Proxy};
use super::raw::RawClient;
use super::report::Report;
use super::stage::{ANONYMOUS, KEEPS_ALL, Setting, Stage};
use super::wire::{Connect, Publish};
use crate::Mosquitto;
use crate::chance::Chance;
use crate::daemon::{BASE, TIMEOUT};

/// Between two live statuses that are forged: fewer than a probe would need to see of another node.
const FORGERY_INTERVAL: Duration = Duration::from_secs(20);

pub(super) async fn run(plan: Plan, report: &mut Report) -> Result<()> {
    let mut chance = Chance::seeded(plan.seed);
    let lines = format!("{ANONYMOUS}{KEEPS_ALL}");
    let mosquitto = Mosquitto::with(&lines, |_| {}).context("mosquitto is not installed")?;
    let port = mosquitto.port;
    let proxy = Proxy::start(port, Fate::default).await?;
    let setting = Setting {
        node_port: Some(proxy.port),
        ..Setting::default()
    };
    let mut stage = Stage::at(mosquitto, setting).await?;
    let mut asker = Asker::start(port, "anna", false).await?;
    asker.run(3, 1, Instant::now() + TIMEOUT).await;

    second_process(&mut stage, report).await?;
    asker.run(3, 1, Instant::now() + TIMEOUT).await;

    let forger = Connect {
        client_id: "forger".into(),
        clean: true,
        ..Connect::default()
    };
    let mut forger = RawClient::connect(port, &forger).await?;
    // Young connections, all closed by the other side, with a forged status retained for all that read it.
    let longest = plan.of(Duration::from_millis(600), Duration::from_millis(9_500));
    // Also of the connections by which a node asks who has its session.
    let wanted = plan.of(12, 40);
    let mut lives = chance.branch();
    proxy.change(move || Fate {
        after: Some(lives.time(Duration::from_millis(50)..longest)),
        ..Fate::default()
    });
    let folder = stage.kill()?;
    stage.start(folder);
    let deadline = Instant::now() + plan.of(Duration::from_secs(30), Duration::from_mins(12));
    let before = proxy.deaths();
    let mut forged = Instant::now();
    forge(&mut forger, &mut chance, report).await?;
    let mut gone = false;
    while proxy.deaths() - before < wanted && Instant::now() < deadline && !gone {
        asker.run(1, 2, Instant::now() + Duration::from_millis(100)).await;
        if forged.elapsed() > FORGERY_INTERVAL {
            forged = Instant::now();
            forge(&mut forger, &mut chance, report).await?;
        }
        gone = stage.exited().is_some();
    }
    report.deaths = proxy.deaths() - before;
    report.attacks += report.deaths;
    proxy.change(Fate::default);
    if !gone {
        asker.run(3, 2, Instant::now() + TIMEOUT).await;
        asker.finish(TIMEOUT).await;
    }
    report.messages = asker.accounts.asked;
    report.settled = asker.accounts.answered;
    let missing = asker.missing().len();
    report.require(missing == 0, || format!("{missing} requests have no outcome"));
    let wrong = asker.accounts.errors.len() as u64 + asker.accounts.differing;
    report.require(wrong == 0, || format!("{wrong} outcomes are errors or differ"));
    // What the forger said is no fault of the node's.
    stage.conclude(report);
    Ok(())
}

/// `phi-edge run` by hand with the service's configuration: it ends, and the service does not.
async fn second_process(stage: &mut Stage, report: &mut Report) -> Result<()> {
    let mut second = stage
        .command_of_second()?
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    report.attacks += 1;
    let begun = Instant::now();
    let status = loop {
        if let Some(status) = second.try_wait()? {
            break Some(status);
        }
        if begun.elapsed() > TIMEOUT / 4 || stage.exited().is_some() {
            break None;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    let _ = second.kill();
    let _ = second.wait();
    report.require(status.is_some_and(|status| !status.success()), || {
        format!("a second process on the same store goes on ({status:?})")
    });
    report.require(stage.exited().is_none(), || {
        "a second process started by hand ends the service".to_owned()
    });
    if let Some(code) = stage.exited() {
        report.exits += 1;
        report.require(false, || format!("the service ended with {code}"));
        let folder = stage.kill()?;
        stage.start(folder);
    }
    // Its will, or the second one's, may have been the last word.
    let alive = stage.ready().await;
    report.require(alive.is_ok(), || "the service is not ready afterwards".to_owned());
    Ok(())
}

/// A status of a node that is not there: one that stays at the broker, as a node of the same name would have it.
async fn forge(forger: &mut RawClient, chance: &mut Chance, report: &mut Report) -> Result<()> {
    let status = json!({
        "state": chance.pick(&["ready", "starting", "degraded"]),
        "reason": null,
        "boot_id": format!("{:016x}", chance.number()),
        "version": "0.1.0",
        "model": "demo",
        "context": 2048,
        "provider": "cpu",
        "features": [],
        "limits": {"max_payload": 1, "max_tokens": 1, "max_prompt_tokens": null, "max_deadline_ms": 1, "queue": 1, "slots": 1},
    });
    report.attacks += 1;
    let publish = Publish {
        topic: format!("{BASE}/status"),
        payload: status.to_string().into_bytes(),
        qos: 1,
        retain: true,
        ..Publish::default()
    };
    forger.publish(&publish).await
}
