//! Rounds, chance, and what a case needs to stand on.

use std::collections::HashSet;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::process::Command;

use phi_edge_tests::{Chance, Daemon, Field, Mosquitto, Tally, demo_model, has_library, phi_edge};
use tempfile::TempDir;

/// A broker that keeps what it has acknowledged, even when it is killed.
const DURABLE_BROKER: &str =
    "allow_anonymous true\nautosave_on_changes true\nautosave_interval 1\nmax_queued_messages 0\n";

/// Where copies of an outcome are allowed (design, section 3).
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Copies {
    /// Process, link or broker died, so that a reply may have been under way, or the client asked again.
    Allowed,
    Forbidden,
}

/// Broker, daemon and client of one round.
pub struct Stage {
    pub broker: Mosquitto,
    pub daemon: Option<Daemon>,
    pub field: Field,
    pub chance: Chance,
    settings: Vec<String>,
    /// Starts of the daemon that were ready.
    boots: HashSet<String>,
}

impl Stage {
    /// All of them, ready. `None` (and said so) where something is missing.
    pub async fn new(settings: &[&str]) -> Option<Self> {
        Self::with_broker("", settings).await
    }

    /// As [`Stage::new`], with further settings of the broker.
    pub async fn with_broker(broker: &str, settings: &[&str]) -> Option<Self> {
        let mut stage = Self::without_daemon(broker, settings).await?;
        stage.start(tempfile::tempdir().unwrap());
        stage.ready().await;
        Some(stage)
    }

    /// As [`Stage::with_broker`], but for the daemon.
    pub async fn without_daemon(broker: &str, settings: &[&str]) -> Option<Self> {
        if !has_library() {
            return None;
        }
        let broker = Mosquitto::with(&format!("{DURABLE_BROKER}{broker}"), |_| {})?;
        let field = Field::at(broker.port).await;
        Some(Self {
            broker,
            daemon: None,
            field,
            chance: Chance::random(),
            settings: settings.iter().map(|&s| s.to_owned()).collect(),
            boots: HashSet::new(),
        })
    }

    /// Starts the daemon on this folder.
    pub fn start(&mut self, folder: TempDir) {
        self.start_under(Command::new(phi_edge()), folder);
    }

    /// As [`Stage::start`], with a command that ends in the daemon's own.
    pub fn start_under(&mut self, command: Command, folder: TempDir) {
        let settings: Vec<&str> = self.settings.iter().map(String::as_str).collect();
        self.daemon = Some(Daemon::start_under(
            command,
            folder,
            self.broker.port,
            &demo_model(),
            &settings,
        ));
    }

    /// Waits until the daemon says that it is ready.
    pub async fn ready(&mut self) {
        // The status of an earlier process does not count: each start has its own id.
        let earlier = self.boots.clone();
        let new = |field: &Field| {
            field.status["boot_id"]
                .as_str()
                .filter(|boot| !earlier.contains(*boot))
                .map(str::to_owned)
        };
        self.field
            .listen_until("a ready daemon", |field| {
                field.state() == "ready" && new(field).is_some()
            })
            .await;
        self.boots.extend(new(&self.field));
    }

    /// Kills the daemon and starts it again with what it stored.
    pub async fn kill_and_restart(&mut self) {
        let folder = self.daemon.take().unwrap().kill();
        self.start(folder);
        self.ready().await;
    }

    pub fn daemon(&mut self) -> &mut Daemon {
        self.daemon.as_mut().unwrap()
    }
}

/// Runs a case in all its rounds and holds it to the promise.
pub async fn rounds(name: &str, copies: Copies, case: impl AsyncFn() -> Option<Tally>) {
    let count: u32 = std::env::var("PHI_EDGE_FAULT_ROUNDS").map_or(1, |n| n.parse().unwrap());
    let mut sum = Tally::default();
    for round in 0..count {
        println!("{name}: round {round}");
        let Some(tally) = case().await else { return };
        assert_eq!(
            tally.answered, tally.asked,
            "{name}: requests are lost: {tally:?}"
        );
        assert_eq!(tally.differing, 0, "{name}: outcomes differ: {tally:?}");
        if copies == Copies::Forbidden {
            assert_eq!(tally.copies, 0, "{name}: copies where none may be: {tally:?}");
        }
        sum = sum.and(tally);
    }
    let row = format!(
        "| {name} | {count} | {} | {} | {} | {} | {} |",
        sum.asked, sum.answered, sum.errors, sum.differing, sum.copies
    );
    println!("{row}");
    if let Some(table) = std::env::var_os("PHI_EDGE_FAULT_TABLE") {
        let mut file = OpenOptions::new().create(true).append(true).open(table).unwrap();
        writeln!(file, "{row}").unwrap();
    }
}
