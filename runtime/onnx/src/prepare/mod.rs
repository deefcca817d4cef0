//! Edits of a graph in memory, before it is opened. The files are never touched.
//!
//! Where a graph does not look as an edit expects, it is left alone; where it does, the edited graph is held against
//! the plain one before it is used ([`crate::check`]).

mod cut;
mod logits;
mod proto;
mod ragged;
mod rope;

pub(crate) use cut::cut;
pub(crate) use logits::LOGITS_ROWS;
pub(crate) use ragged::{LENGTHS, POSITIONS};
pub(crate) use rope::Tables;

/// How far a graph is edited. Each level includes those before it, as far as they apply.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Prepare {
    /// Not at all: the graph runs as it stands in its file.
    Plain,
    /// Logits are computed for chosen tokens only.
    Logits,
    /// LongRoPE's tables are inputs.
    Rope,
    /// Rows of a run may differ in their number of tokens, have none, and be of either rope regime.
    Ragged,
}

impl Prepare {
    /// What is tried, the most first.
    pub(crate) const ALL: [Self; 3] = [Self::Ragged, Self::Rope, Self::Logits];

    /// Its name on the command line and in the file of verdicts.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Logits => "logits",
            Self::Rope => "rope",
            Self::Ragged => "ragged",
        }
    }
}

impl std::fmt::Display for Prepare {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

impl std::str::FromStr for Prepare {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .chain([Self::Plain])
            .find(|level| level.as_str() == text)
            .ok_or_else(|| format!("unknown \"{text}\": use plain, logits, rope or ragged"))
    }
}

/// An edited graph.
pub(crate) struct Prepared {
    pub(crate) graph: Vec<u8>,
    /// What its inputs for rope tables take, if it has such.
    pub(crate) tables: Option<Tables>,
}

/// Edits `model`, whose logits have this name. `None` where the level's own edit does not apply.
pub(crate) fn prepare(model: &[u8], logits: &str, level: Prepare) -> Option<Prepared> {
    let (mut graph, mut tables) = (None, None);
    if level >= Prepare::Rope {
        match rope::take_tables(model) {
            Some((edited, taken)) => (graph, tables) = (Some(edited), Some(taken)),
            None if level == Prepare::Rope => return None,
            None => {}
        }
    }
    if level >= Prepare::Ragged {
        graph = Some(ragged::wire_lengths(graph.as_deref().unwrap_or(model))?);
    }
    match logits::choose_logits(graph.as_deref().unwrap_or(model), logits) {
        Some(edited) => graph = Some(edited),
        None if level == Prepare::Logits => return None,
        None => {}
    }
    Some(Prepared {
        graph: graph?,
        tables,
    })
}
