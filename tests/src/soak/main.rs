//! Hours in minutes: requests without end while things break, and what the daemon needs in memory and descriptors.
//!
//! `phi-edge-soak MINUTES [--hostile [SEED]]`; `cargo xtask soak --minutes N` sets everything up. With `--hostile`, hostile clients
//! attack the same node all the while, and the bounds are the same.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use parking_lot::Mutex;
use phi_edge_tests::hostile::{Attack, Force, rules_under_attack};
use phi_edge_tests::{BASE, Chance, Daemon, Field, Mosquitto, demo_model, median, question, random_seed};
use serde_json::json;

/// Between two faults.
const PAUSE: Duration = Duration::from_secs(8);
/// Memory may grow by so much from the first quarter to the last.
const GROWTH: f64 = 1.05;
/// The time between two samples of the daemon's memory and descriptors.
const SAMPLE_INTERVAL: Duration = Duration::from_secs(1);

fn main() -> Result<()> {
    let minutes: u64 = std::env::args().nth(1).context("how many minutes?")?.parse()?;
    let is_hostile = std::env::args().nth(2).is_some_and(|flag| flag == "--hostile");
    let seed = match std::env::args().nth(3) {
        Some(seed) => seed.parse()?,
        None => random_seed(),
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    runtime.block_on(soak(
        Duration::from_secs(minutes * 60),
        is_hostile.then_some(seed),
    ))
}

#[derive(Debug, Clone, Copy)]
struct Sample {
    rss: u64,
    descriptors: usize,
}

/// `hostile`: the seed of the hostile clients, where they attack.
async fn soak(time: Duration, hostile: Option<u64>) -> Result<()> {
    let is_hostile = hostile.is_some();
    // As docs/reliability.md has it: hostile clients send more than the hundred messages a second up to which mosquitto keeps up
    // with saving on changes.
    let saved = !is_hostile;
    let lines = format!(
        "allow_anonymous true\nautosave_on_changes {saved}\nautosave_interval 1\nmax_queued_messages 0\n"
    );
    let mut broker = Mosquitto::with(&lines, |_| {}).context("mosquitto is not installed")?;
    let rules = tempfile::tempdir()?;
    if is_hostile {
        for (name, text) in rules_under_attack() {
            std::fs::write(rules.path().join(format!("{name}.toml")), text)?;
        }
    }
    let rules_dir = format!("node.rules_dir={}", rules.path().display());
    let mut settings = vec!["runtime.slots=4", "log.level=info", &rules_dir];
    if is_hostile {
        // What is kept for those that ask again has a bound. It is reached before the first quarter, so that what grows is a leak.
        settings.push("store.keep_outcomes=2000");
    }
    let daemon = Daemon::start(broker.port, &demo_model(), &settings);
    let samples = Arc::new(Mutex::new(Vec::new()));
    let sampler = tokio::spawn(take_samples(daemon.id(), Arc::clone(&samples)));
    let mut field = Field::at(broker.port).await;
    field
        .listen_until("a ready daemon", |field| field.state() == "ready")
        .await;
    let attack = hostile.map(|seed| {
        println!("hostile clients with seed {seed}");
        Attack::start(broker.port, &hostile_clients(), seed, time)
    });
    let mut chance = hostile.map_or_else(Chance::random, Chance::seeded);
    let mut below = |bound: u64| chance.below(bound);
    let begun = Instant::now();
    let mut asked = 0_u64;
    let mut asked_again = 0_u64;
    let mut faults = 0_u64;
    let mut next_fault = begun + PAUSE;
    while begun.elapsed() < time {
        for _ in 0..=below(4) {
            let mut body = question(8 + usize::try_from(below(40))?);
            body["stream"] = json!(below(2) == 0);
            body["priority"] = json!(["interactive", "normal", "background"][usize::try_from(below(3))?]);
            let id = format!("s{asked}");
            field.ask(&id, body).await;
            asked += 1;
            match below(12) {
                0 => {
                    let cancel = json!({"id": id}).to_string();
                    field
                        .publish(&format!("{BASE}/cancel"), cancel.into_bytes())
                        .await;
                }
                1 => field.ask_again(&id).await,
                2 => {
                    field
                        .publish(&format!("{BASE}/request"), b"{\"id\":".to_vec())
                        .await
                }
                _ => {}
            }
        }
        field
            .listen_until("answers", |field| field.tally().asked - field.answered() < 20)
            .await;
        if Instant::now() >= next_fault {
            next_fault = Instant::now() + PAUSE;
            faults += 1;
            match below(4) {
                0 => {
                    broker.kill();
                    broker.start_again();
                    // What the broker had acknowledged and not written yet is gone with it, replies too. A client that is not
                    // sure asks again, and gets the same outcome.
                    let missing: Vec<String> = field.missing().into_iter().map(str::to_owned).collect();
                    for id in missing {
                        field.ask_again(&id).await;
                        asked_again += 1;
                    }
                }
                1 => {
                    broker.stop();
                    tokio::time::sleep(Duration::from_millis(below(3000))).await;
                    broker.start_again();
                }
                2 => {
                    daemon.signal("STOP");
                    tokio::time::sleep(Duration::from_millis(below(1000))).await;
                    daemon.signal("CONT");
                }
                _ => field.leave(),
            }
        }
    }
    if let Some(attack) = attack {
        attack.end().await;
    }
    sampler.abort();
    let tally = field.settle().await;
    // Hostile clients fill the queue: then a request may be refused and its repeat accepted, or the other way round.
    let mut differing = tally.differing;
    if is_hostile {
        let accepted = field.differing_when_accepted();
        for (id, outcomes) in &accepted {
            println!("outcomes of {id} differ: {outcomes:?}");
        }
        differing = accepted.len();
    }
    let samples = samples.lock().clone();
    let quarter = (samples.len() / 4).max(1);
    let median = |part: &[Sample], of: fn(&Sample) -> u64| median(part.iter().map(of));
    // The first quarter's first half is warming up.
    let first = &samples[quarter / 2..(quarter / 2 + quarter).min(samples.len())];
    let last = &samples[samples.len() - quarter.min(samples.len())..];
    let rss = |sample: &Sample| sample.rss;
    let open = |sample: &Sample| sample.descriptors as u64;
    let report = json!({
        "minutes": begun.elapsed().as_secs() / 60,
        "requests": tally.asked,
        "answered": tally.answered,
        "errors": tally.errors,
        "differing": differing,
        "copies": tally.copies,
        "asked_again": asked_again,
        "faults": faults,
        "rss_bytes": [median(first, rss), median(last, rss)],
        "descriptors": [median(first, open), median(last, open)],
    });
    println!("{report}");
    if tally.answered != tally.asked || differing > 0 {
        bail!("requests are lost or answered twice: {tally:?}");
    }
    #[expect(clippy::cast_precision_loss, reason = "far below 2^52 bytes")]
    let growth = median(last, rss) as f64 / median(first, rss).max(1) as f64;
    if growth > GROWTH {
        bail!("memory grows: {growth:.3} times the first quarter's");
    }
    if median(last, open) > median(first, open) + 2 {
        bail!("descriptors are leaked");
    }
    Ok(())
}

/// As strong as leaves the soak's own client its share of two processors.
fn hostile_clients() -> Force {
    Force {
        clients: 10,
        pause: Duration::from_millis(50)..Duration::from_secs(1),
        largest: 256 << 10,
    }
}

/// Samples the process until it is aborted, or the process has ended.
async fn take_samples(process: u32, samples: Arc<Mutex<Vec<Sample>>>) {
    let mut ticks = tokio::time::interval(SAMPLE_INTERVAL);
    loop {
        ticks.tick().await;
        match sample(process) {
            Ok(sample) => samples.lock().push(sample),
            Err(error) => return eprintln!("no sample: {error:#}"),
        }
    }
}

fn sample(process: u32) -> Result<Sample> {
    let process = format!("/proc/{process}");
    let status = std::fs::read_to_string(format!("{process}/status"))?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .context("no memory")?;
    let kib: u64 = line.trim().trim_end_matches("kB").trim().parse()?;
    Ok(Sample {
        rss: kib * 1024,
        descriptors: std::fs::read_dir(format!("{process}/fd"))?.count(),
    })
}
