//! Rules whose topics change while messages come: each message counts once, by whichever filter it came.

use std::time::{Duration, Instant};

use anyhow::Result;
use phi_edge_mqtt::Client;
use serde_json::json;

use super::Plan;
use super::attack::COUNTED;
use super::report::Report;
use super::stage::{Broker, Setting, Stage};
use super::watch::Sum;
use crate::chance::Chance;
use crate::client;
use crate::daemon::TIMEOUT;

/// Filters of the rule that counts, each set covering all topics that are published on.
const FILTERS: [&str; 7] = [
    "\"plant/#\"",
    "\"plant/+/x\", \"plant/+/y\"",
    "\"plant/a/#\", \"plant/b/#\"",
    "\"plant/#\", \"plant/+/x\"",
    "\"plant/a/x\", \"plant/+/x\", \"plant/+/y\"",
    "\"plant/+/+\"",
    "\"+/a/#\", \"+/b/+\", \"plant/a/x\"",
];
/// Topics that are published on.
const TOPICS: [&str; 4] = ["plant/a/x", "plant/b/x", "plant/a/y", "plant/b/y"];
/// Filters of a rule that comes and goes beside it.
const OTHERS: [&str; 3] = ["\"plant/a/x\"", "\"plant/#\"", "\"plant/+/y\", \"plant/b/+\""];
/// What is published together.
const BEAT: Duration = Duration::from_millis(10);

pub(super) async fn run(plan: Plan, broker: Broker, report: &mut Report) -> Result<()> {
    let mut chance = Chance::seeded(plan.seed);
    let rules = [(COUNTED, rule(FILTERS[0]))];
    let setting = Setting {
        rules: &rules,
        ..Setting::default()
    };
    let mut stage = Stage::with(broker, "max_inflight_messages 0\n", setting).await?;
    let time = plan.time(Duration::from_secs(8));
    let device = client(stage.port).await;
    let rate = plan.of(2000, 2500);
    let speaking = tokio::spawn(speak(device, chance.branch(), rate, time));
    let end = Instant::now() + time;
    let mut other = false;
    while Instant::now() < end && stage.exited().is_none() {
        let pause = chance.time(Duration::from_millis(5)..Duration::from_millis(600));
        tokio::time::sleep(pause).await;
        if chance.once_in(3) {
            if other && chance.once_in(2) {
                stage.remove_rule("other")?;
                other = false;
            } else {
                stage.write_rule("other", &rule(chance.pick(&OTHERS)))?;
                other = true;
            }
        } else {
            stage.write_rule(COUNTED, &rule(chance.pick(&FILTERS)))?;
        }
        if let Some(daemon) = &stage.daemon {
            daemon.signal("HUP");
        }
        report.attacks += 1;
    }
    let said = speaking.await??;
    if stage.exited().is_none() {
        let counted = |seen: &super::watch::Seen| seen.sum(COUNTED).messages >= said.messages;
        let _ = stage.until("counted messages", TIMEOUT / 2, counted).await;
        // What counts twice would come with the next windows.
        tokio::time::sleep(Duration::from_secs(3)).await;
    }
    let sum = stage.watch.seen().sum(COUNTED);
    report.require(sum == said, || format!("{said:?} came to {sum:?}"));
    report.messages = said.messages;
    report.settled = sum.messages.min(said.messages);
    stage.conclude(report);
    Ok(())
}

fn rule(filters: &str) -> String {
    format!(
        "topics = [{filters}]\nfields = {{ n = \"/n\" }}\nfacts_only = true\n\
         window = {{ kind = \"tumbling\", every = \"1s\" }}\n"
    )
}

/// Publishes so many messages a second, with numbers.
async fn speak(mut device: Client, mut chance: Chance, rate: u64, time: Duration) -> Result<Sum> {
    let mut said = Sum::default();
    let begun = Instant::now();
    let mut beats = tokio::time::interval(BEAT);
    while begun.elapsed() < time {
        beats.tick().await;
        let due = rate * u64::try_from(begun.elapsed().as_millis())? / 1000;
        while said.messages < due {
            let number = said.messages;
            let payload = json!({"n": number}).to_string();
            let topic = chance.pick(&TOPICS);
            said.messages += 1;
            said.numbers += number;
            if said.messages == due {
                // The last of a beat is waited for: what the broker has not taken does not pile up here.
                device.publish(topic, payload, None).await?;
            } else {
                device.publish_later(topic, payload)?;
            }
        }
    }
    device.close().await;
    Ok(said)
}
