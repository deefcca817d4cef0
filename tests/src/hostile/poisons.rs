//! Replies and events that end the node's connection, among many that do not; the reason is known (mosquitto refuses some
//! topics by ending the connection) or not (a path that ends it at a marker).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;

use super::Plan;
use super::asker::Asker;
use super::poisoner::{Counts, Poisoner, Sent};
use super::proxy::{Fate, Proxy};
use super::report::Report;
use super::stage::{AUDITOR, Setting, Stage, guarded};
use super::watch::{Seen, Watch};
use crate::chance::Chance;

/// Deaths of connections that a poison may cost.
const DEATHS: u64 = 5;
/// Whose requests are good.
const HONEST: [&str; 3] = ["anna", "bert", "carl"];
/// Whose are poisoned, and the devices.
const HOSTILE: [&str; 2] = ["mallory", "plant"];

pub(super) async fn run(plan: Plan, report: &mut Report) -> Result<()> {
    let counts = plan.of(
        Counts {
            requests: 200,
            messages: 200,
            poisons: 10,
        },
        Counts {
            requests: 2000,
            messages: 2000,
            poisons: 200,
        },
    );
    let mut chance = Chance::seeded(plan.seed);
    let marker = format!("Mark-{:08x}", chance.number() & 0xffff_ffff);
    let (mut stage, proxy) = set_up(&marker).await?;
    let port = stage.port;
    let patience = plan.of(Duration::from_secs(45), Duration::from_mins(20));
    let deadline = Instant::now() + patience;
    let before = proxy.deaths();

    let mut asking = Vec::new();
    for name in HONEST {
        let mut asker = Asker::start(port, name, true).await?;
        let each = counts.requests / HONEST.len() as u64 + 1;
        asking.push(tokio::spawn(async move {
            asker.run(each, 8, deadline).await;
            asker
        }));
    }
    let hostile = Poisoner {
        port,
        marker,
        chance: chance.branch(),
        counts,
    };
    let sent = hostile.run(deadline).await?;
    for asking in asking {
        let asker = asking.await?;
        report.messages += asker.accounts.asked;
        report.settled += asker.accounts.answered;
        let wrong = asker.accounts.errors.len() as u64 + asker.accounts.differing;
        report.require(asker.missing().is_empty() && wrong == 0, || {
            format!(
                "{} good requests without an answer, {wrong} with a wrong one",
                asker.missing().len()
            )
        });
    }
    let left = deadline.saturating_duration_since(Instant::now());
    let settled = stage.until("poisons", left, |seen| sent.open(seen) == 0).await;
    // What should not come would come now.
    tokio::time::sleep(Duration::from_secs(1)).await;
    report.deaths = proxy.deaths() - before;
    sent.judge(&stage.watch.seen(), settled.is_ok(), report);
    let (deaths, poisons) = (report.deaths, report.poisons);
    report.require(deaths <= DEATHS * poisons, || {
        format!("{deaths} deaths for {poisons} poisons")
    });
    check_retained(port, report).await?;
    stage.conclude(report);
    Ok(())
}

/// A node with rules behind a path that ends connections at the marker, at a broker with the access rules that come along.
async fn set_up(marker: &str) -> Result<(Stage, Proxy)> {
    let users: Vec<&str> = HONEST
        .into_iter()
        .chain(HOSTILE)
        .chain(["phi-edge", AUDITOR])
        .collect();
    let mosquitto = guarded(&users, "")?;
    let bytes: Arc<[u8]> = marker.as_bytes().into();
    let proxy = Proxy::start(mosquitto.port, move || Fate {
        marker: Some(Arc::clone(&bytes)),
        ..Fate::default()
    })
    .await?;
    let rules = rules();
    let password = mosquitto.folder().join("password");
    std::fs::write(&password, "phi-edge")?;
    let settings = [
        "mqtt.username=phi-edge".to_owned(),
        format!("mqtt.password_file={}", password.display()),
        // Outcomes that can't leave yet must not turn others away.
        "limits.queue=1000".to_owned(),
    ];
    let setting = Setting {
        rules: &rules,
        settings: &settings,
        node_port: Some(proxy.port),
        auditor: Some(AUDITOR),
        ..Setting::default()
    };
    let stage = Stage::at(mosquitto, setting).await?;
    Ok((stage, proxy))
}

/// One that publishes by a group that a device names; one that could be made to write over the node's own topics.
fn rules() -> [(&'static str, String); 2] {
    let rule = |topics: &str, output: &str| {
        format!(
            "topics = [\"{topics}\"]\ngroup_by = \"field:/dev\"\nfields = {{ n = \"/n\", text = \"/text\" }}\n\
             facts_only = true\n{output}window = {{ kind = \"count\", messages = 1, max_groups = 100000 }}\n"
        )
    };
    [
        (
            "devices",
            rule("plant/+/reading", "output = { topic = \"out/{group}\" }\n"),
        ),
        (
            "shadows",
            rule(
                "plant/+/shadow",
                "output = { topic = \"{base}/{group}\", retain = true }\n",
            ),
        ),
    ]
}

impl Sent {
    /// Good messages and poisons of which nothing is known yet.
    fn open(&self, seen: &Seen) -> usize {
        let events = firsts(seen);
        let lost = self
            .good
            .iter()
            .filter(|number| !events.contains_key(number))
            .count();
        let requests = letters(seen);
        let untold = self
            .requests
            .iter()
            .filter(|id| !is_told(id, &requests, seen))
            .count();
        // An event that does not come is a letter: which one, only its own id would tell.
        let missing = self
            .poisoned
            .iter()
            .filter(|number| !events.contains_key(number))
            .count();
        lost + untold + missing.saturating_sub(self.event_letters(&requests))
    }

    /// The first of those that [`Sent::open`] counts.
    fn open_ones(&self, seen: &Seen) -> String {
        const SHOWN: usize = 5;
        let events = firsts(seen);
        let letters = letters(seen);
        let without = |numbers: &BTreeSet<u64>| -> Vec<u64> {
            let missing = numbers.iter().filter(|number| !events.contains_key(number));
            missing.take(SHOWN).copied().collect()
        };
        let untold: Vec<&String> = self
            .requests
            .iter()
            .filter(|id| !is_told(id, &letters, seen))
            .take(SHOWN)
            .collect();
        format!(
            "good messages {:?}, poisoned messages {:?} with {} letters, requests {untold:?}",
            without(&self.good),
            without(&self.poisoned),
            self.event_letters(&letters)
        )
    }

    /// Dead letters that are about no request of this run.
    fn event_letters(&self, letters: &BTreeMap<String, usize>) -> usize {
        letters
            .keys()
            .filter(|id| !self.requests.contains(*id) && !id.is_empty())
            .count()
    }

    fn judge(&self, seen: &Seen, settled: bool, report: &mut Report) {
        let events = firsts(seen);
        let letters = letters(seen);
        let counted = self
            .good
            .iter()
            .filter(|number| events.contains_key(number))
            .count();
        let twice = events.values().filter(|count| **count > 1).count();
        report.poisons = (self.requests.len() + self.poisoned.len()) as u64;
        report.attacks = report.poisons;
        report.messages += self.good.len() as u64;
        report.settled += counted as u64;
        report.require(counted == self.good.len(), || {
            format!("{} good messages without an event", self.good.len() - counted)
        });
        report.require(twice == 0, || format!("{twice} messages have two events"));
        report.require(settled, || {
            format!(
                "{} poisons or messages are open: {}",
                self.open(seen),
                self.open_ones(seen)
            )
        });
        // Those without an id are about what can't be named.
        let repeated = letters.iter().filter(|(id, count)| !id.is_empty() && **count > 1);
        let repeated = repeated.count();
        report.require(repeated == 0, || {
            format!("{repeated} poisons have several dead letters")
        });
        let missing = self
            .poisoned
            .iter()
            .filter(|number| !events.contains_key(number))
            .count();
        let told = self.event_letters(&letters);
        report.require(told == missing, || {
            format!("{told} dead letters for {missing} poisoned events")
        });
    }
}

/// How many events there are of each message, by its number.
fn firsts(seen: &Seen) -> BTreeMap<u64, u32> {
    let mut counts = BTreeMap::new();
    for number in seen.firsts.values().flatten() {
        *counts.entry(*number).or_default() += 1;
    }
    counts
}

/// Dead letters of what can't be delivered, by the id that they are about. Others repeat what a client was told.
fn letters(seen: &Seen) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for letter in &seen.dead {
        *counts.entry(letter.id.clone()).or_default() += 1;
    }
    counts
}

/// Whether a poisoned request has come to an end that somebody can see: a reply, or a dead letter.
fn is_told(id: &str, letters: &BTreeMap<String, usize>, seen: &Seen) -> bool {
    letters.contains_key(id)
        || seen.outcomes.contains_key(&format!("mallory/{id}"))
        // A letter that names the marked id would be the next poison: it can only say that there was one.
        || (id.contains("-Mark-") && seen.dead_for("undeliverable") > 0)
}

/// What is retained on the node's own topics is the node's.
async fn check_retained(port: u16, report: &mut Report) -> Result<()> {
    let watch = Watch::start(port, Some(AUDITOR)).await?;
    let kept = watch
        .until("the retained status", Duration::from_secs(10), |seen| {
            !seen.status["boot_id"].is_null() && !seen.stats.is_null()
        })
        .await;
    report.require(kept.is_ok(), || {
        "status or stats are not retained any more".to_owned()
    });
    report.require(watch.seen().foreign.is_empty(), || {
        format!("retained content of others: {:?}", watch.seen().foreign)
    });
    Ok(())
}
