//! Attacks from outside, as a permanent suite: what a node must live through, in a short and in a long form.
//!
//! `cargo xtask hostile` runs the long form and writes the table of docs/reliability.md, `tests/tests/hostile.rs` the short
//! one. Each scenario is a file with one attack; a seed repeats it. Bounds that do not hold are in [`Report::broken`].

mod asker;
mod attack;
mod cgroup;
mod clients;
mod crash_loop;
mod fights;
mod flapping;
mod memory;
mod payloads;
mod picture_files;
mod pictures;
mod poisoner;
mod poisons;
mod proxy;
mod raw;
mod reloads;
mod report;
mod stage;
mod watch;
mod wire;

use std::time::{Duration, Instant};

pub use attack::{Attack, Force, rules as rules_under_attack};
pub use crash_loop::CrashLoop;
pub use report::Report;

use self::stage::Broker;
use crate::chance::random_seed;

/// An attack on a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scenario {
    /// Replies and events that end the connection, among many that do not.
    Poisons,
    /// A path that ends connections at random.
    Flapping,
    /// kill -9 at random moments of catching up with what waits at the broker.
    CrashLoop,
    /// Fifty hostile clients, and 1 GiB of memory.
    Memory,
    /// Hostile clients at mosquitto.
    Clients,
    /// Hostile clients at the embedded broker.
    ClientsEmbedded,
    /// Rules that change while messages come, at mosquitto.
    Reloads,
    /// Rules that change while messages come, at the embedded broker.
    ReloadsEmbedded,
    /// Whatever looks like a fight over the session and is none.
    Fights,
    /// Damaged and hostile pictures.
    Pictures,
}

/// How a scenario is run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plan {
    /// Repeats a run.
    pub seed: u64,
    /// The length of scenarios that are a matter of time; `None` is the short form, of seconds.
    pub minutes: Option<u32>,
}

impl Plan {
    /// The short form, with the seed of `PHI_EDGE_HOSTILE_SEED` or a random one.
    pub fn short() -> Self {
        let given = std::env::var("PHI_EDGE_HOSTILE_SEED").ok();
        Self {
            seed: given
                .and_then(|seed| seed.parse().ok())
                .unwrap_or_else(random_seed),
            minutes: None,
        }
    }

    fn of<T>(self, short: T, long: T) -> T {
        if self.minutes.is_some() { long } else { short }
    }

    /// How long an attack lasts: `short`, or as many minutes as asked for.
    fn time(self, short: Duration) -> Duration {
        self.minutes
            .map_or(short, |minutes| Duration::from_secs(u64::from(minutes) * 60))
    }
}

impl Scenario {
    /// All of them, in the order of the table.
    pub const ALL: [Self; 10] = [
        Self::Poisons,
        Self::Flapping,
        Self::CrashLoop,
        Self::Memory,
        Self::Clients,
        Self::ClientsEmbedded,
        Self::Reloads,
        Self::ReloadsEmbedded,
        Self::Fights,
        Self::Pictures,
    ];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Poisons => "poisons",
            Self::Flapping => "flapping",
            Self::CrashLoop => "crash-loop",
            Self::Memory => "memory",
            Self::Clients => "clients",
            Self::ClientsEmbedded => "clients-embedded",
            Self::Reloads => "reloads",
            Self::ReloadsEmbedded => "reloads-embedded",
            Self::Fights => "fights",
            Self::Pictures => "pictures",
        }
    }

    /// Runs it. What can't be set up is a broken bound too; `None` where the machine lacks what the scenario needs.
    pub async fn run(self, plan: Plan) -> Option<Report> {
        println!("{}: seed {}", self.name(), plan.seed);
        let begun = Instant::now();
        let mut report = Report {
            scenario: self.name().to_owned(),
            seed: plan.seed,
            ..Report::default()
        };
        let outcome = match self {
            Self::Poisons => poisons::run(plan, &mut report).await,
            Self::Flapping => flapping::run(plan, &mut report).await,
            Self::CrashLoop => crash_loop::run(plan, &mut report).await,
            Self::Memory => match cgroup::Memory::limited(memory::LIMIT) {
                Ok(group) => memory::run(plan, group, &mut report).await,
                Err(why) => {
                    crate::skip(&format!("no memory cgroup can be made: {why:#}"));
                    return None;
                }
            },
            Self::Clients => clients::run(plan, Broker::Mosquitto, &mut report).await,
            Self::ClientsEmbedded => clients::run(plan, Broker::Embedded, &mut report).await,
            Self::Reloads => reloads::run(plan, Broker::Mosquitto, &mut report).await,
            Self::ReloadsEmbedded => reloads::run(plan, Broker::Embedded, &mut report).await,
            Self::Fights => fights::run(plan, &mut report).await,
            Self::Pictures => pictures::run(plan, &mut report).await,
        };
        if let Err(error) = outcome {
            report.broken.push(format!("{error:#}"));
        }
        report.time = begun.elapsed();
        Some(report)
    }
}
