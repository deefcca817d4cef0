//! A process that measures once for every line it is given.

use std::io::{BufRead, BufReader, Lines, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context, Result, bail};
use serde_json::{Map, Value};

use super::table::median;

/// A loaded model that waits for its turn.
pub(crate) struct Peer {
    child: Child,
    turns: Option<ChildStdin>,
    answers: Lines<BufReader<ChildStdout>>,
    loaded: Value,
    measured: Vec<Value>,
}

impl Peer {
    /// Starts `command` and waits until its model is loaded.
    pub(crate) fn start(mut command: Command) -> Result<Self> {
        let shown = format!("{command:?}");
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("{shown} can't be started"))?;
        let (Some(turns), Some(answers)) = (child.stdin.take(), child.stdout.take()) else {
            bail!("{shown} has no pipes");
        };
        let mut peer = Self {
            child,
            turns: Some(turns),
            answers: BufReader::new(answers).lines(),
            loaded: Value::Null,
            measured: Vec::new(),
        };
        peer.loaded = peer.answer().with_context(|| shown)?;
        Ok(peer)
    }

    /// Takes one measurement.
    pub(crate) fn measure(&mut self) -> Result<()> {
        let turns = self.turns.as_mut().context("the peer has ended")?;
        writeln!(turns, "go").context("the peer takes no more turns")?;
        let answer = self.answer()?;
        self.measured.push(answer);
        Ok(())
    }

    /// What it said when it was loaded.
    pub(crate) fn loaded(&self) -> &Value {
        &self.loaded
    }

    /// What it measured, turn by turn.
    pub(crate) fn measured(&self) -> &[Value] {
        &self.measured
    }

    /// What it said when it was loaded, with the medians of its measurements.
    pub(crate) fn medians(&self) -> Value {
        let mut all: Map<String, Value> = self.loaded.as_object().cloned().unwrap_or_default();
        let keys = self.measured.first().and_then(Value::as_object);
        for key in keys.into_iter().flat_map(Map::keys) {
            let mut values: Vec<f64> = self.measured.iter().filter_map(|m| m[key].as_f64()).collect();
            values.sort_by(f64::total_cmp);
            all.insert(key.clone(), Value::from(median(&values)));
        }
        Value::Object(all)
    }

    /// Ends the process; what it measured stays.
    fn end(&mut self) {
        // Without turns it ends by itself, and ends what it has started.
        self.turns = None;
        for _ in 0..100 {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(100));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Its next object; other lines, of a library that talks, are passed over.
    fn answer(&mut self) -> Result<Value> {
        for line in self.answers.by_ref() {
            if let Ok(value @ Value::Object(_)) = serde_json::from_str(&line?) {
                return Ok(value);
            }
        }
        bail!("the peer ended without an answer")
    }
}

/// One process of ours and one of the peer's, both loaded; they measure in turns, and each is the first in half of them. The
/// medians of each.
pub(crate) fn pair(ours: Command, theirs: Command, turns: u32, ours_first: bool) -> Result<(Value, Value)> {
    let (mut ours, mut theirs) = if ours_first {
        let ours = Peer::start(ours)?;
        (ours, Peer::start(theirs)?)
    } else {
        let theirs = Peer::start(theirs)?;
        (Peer::start(ours)?, theirs)
    };
    for turn in 0..turns {
        if ours_first == (turn % 2 == 0) {
            ours.measure()?;
            theirs.measure()?;
        } else {
            theirs.measure()?;
            ours.measure()?;
        }
    }
    Ok((ours.medians(), theirs.medians()))
}

/// Loads all of them and has them measure in turns, each first in its share of the turns: what the machine does to one it
/// does to the others a little later.
pub(crate) fn in_turns(commands: Vec<Command>, turns: u32) -> Result<Vec<Peer>> {
    let mut peers = commands
        .into_iter()
        .map(Peer::start)
        .collect::<Result<Vec<_>>>()?;
    let count = peers.len();
    for turn in 0..turns as usize {
        for n in 0..count {
            peers[(turn + n) % count].measure()?;
        }
    }
    Ok(peers)
}

/// One after the other, each alone on the machine with a single measurement: for what needs most of the memory.
pub(crate) fn one_by_one(commands: Vec<Command>) -> Result<Vec<Peer>> {
    let measure = |command| {
        let mut peer = Peer::start(command)?;
        peer.measure()?;
        peer.end();
        Ok(peer)
    };
    commands.into_iter().map(measure).collect()
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.end();
    }
}
