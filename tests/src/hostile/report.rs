//! What came of a scenario: one row of a table.

use std::fmt::Write as _;
use std::time::Duration;

/// The table's head.
pub(super) const HEAD: &str = "\
| scenario | seed | seconds | attacks | requests and messages | answered or counted | poisons | dead letters | deaths | exits | \
median latency ms: quiet, attacked | peak MB | verdict |
|---|---|---|---|---|---|---|---|---|---|---|---|---|
";

/// What came of a scenario.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// The scenario's name.
    pub scenario: String,
    /// The seed that it can be repeated with.
    pub seed: u64,
    /// How long it took.
    pub time: Duration,
    /// Actions of hostile clients, kills, reloads: whatever the scenario attacks with.
    pub attacks: u64,
    /// Requests and messages that must be answered or counted.
    pub messages: u64,
    /// Those that were.
    pub settled: u64,
    /// Poisons among them.
    pub poisons: u64,
    /// Messages on the dead-letter topic.
    pub dead_letters: u64,
    /// Connections of the node that ended.
    pub deaths: u64,
    /// Unexpected ends of the process.
    pub exits: u64,
    /// An honest client's median latency, without and with the attack.
    pub latency: Option<(Duration, Duration)>,
    /// The process's peak of resident memory, in bytes.
    pub peak: u64,
    /// Bounds that do not hold; none is a pass.
    pub broken: Vec<String>,
}

impl Report {
    /// Notes a bound that does not hold.
    pub(super) fn require(&mut self, holds: bool, what: impl FnOnce() -> String) {
        if !holds {
            self.broken.push(what());
        }
    }

    /// The table of several.
    pub fn table(reports: &[Self]) -> String {
        reports.iter().fold(HEAD.to_owned(), |mut table, report| {
            table.push_str(&report.row());
            table
        })
    }

    fn row(&self) -> String {
        let mut row = format!(
            "| {} | {} | {} | {} | {} | {} | {} | {} | {} | {} ",
            self.scenario,
            self.seed,
            self.time.as_secs(),
            self.attacks,
            self.messages,
            self.settled,
            self.poisons,
            self.dead_letters,
            self.deaths,
            self.exits,
        );
        let latency = self.latency.map_or_else(
            || "–".to_owned(),
            |(quiet, attacked)| format!("{}, {}", quiet.as_millis(), attacked.as_millis()),
        );
        let verdict = if self.broken.is_empty() {
            "held".to_owned()
        } else {
            format!("**broken**: {}", self.broken.join("; ").replace(['|', '\n'], " "))
        };
        // Writing to a String can't fail.
        let _ = writeln!(row, "| {latency} | {} | {verdict} |", self.peak >> 20);
        row
    }
}
