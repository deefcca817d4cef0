//! The edit cache: the outcomes of trying edited graphs, kept from one start to the next.
//!
//! An outcome holds for one graph, one library, one provider and one processor. A file that can't be read or written
//! costs the time of another trial, and nothing else.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use crate::prepare::{Prepare, ProductShape};

/// The revision of the edits and of the trial: part of the key.
const TRIAL_REVISION: &str = "3";
/// The most graphs in the file. More than that come from experiments.
const MAX_GRAPHS: usize = 32;
/// The entry of an edited graph whose results equal the plain one's.
const VERIFIED: &str = "holds";

/// What a trial tries: the entry of its outcome.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Tried {
    /// Edits of the graph.
    Edits(Prepare),
    /// Keys and values of 8 bits under these edits.
    KvI8 {
        /// The edits.
        edits: Prepare,
        /// No token may choose another expert.
        exactly: bool,
    },
    /// The image encoder's graph, cut at the place of this number, whose axis counts crops.
    EncoderCut {
        /// The number of the place, from the last.
        number: usize,
        /// The axis.
        axis: usize,
    },
    /// Which operator is faster for products of this shape, on this number of threads: a note of the choice.
    Products {
        /// The shape of the weights.
        shape: ProductShape,
        /// The threads.
        threads: usize,
    },
    /// The image encoder's weights in this number of bits: a note of their loss.
    EncoderWeights(i64),
}

impl std::fmt::Display for Tried {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Edits(edits) => f.write_str(edits.as_str()),
            Self::KvI8 {
                edits,
                exactly: false,
            } => write!(f, "{edits}, kv i8"),
            Self::KvI8 { edits, exactly: true } => write!(f, "{edits}, kv i8, the same experts"),
            Self::EncoderCut { number, axis } => write!(f, "encoder cut {number}, axis {axis}"),
            Self::Products { shape, threads } => write!(f, "products of {shape}, {threads} threads"),
            Self::EncoderWeights(bits) => write!(f, "encoder weights of {bits} bits"),
        }
    }
}

/// The cached outcomes of one graph.
pub(crate) struct EditCache {
    file: Option<PathBuf>,
    key: String,
}

impl EditCache {
    /// The cache for `graph`, run under these circumstances.
    pub(crate) fn for_graph(graph: &[u8], circumstances: &[&str], file: Option<&Path>) -> Self {
        let mut digest = Sha256::new();
        digest.update(graph);
        for circumstance in [TRIAL_REVISION].iter().chain(circumstances) {
            digest.update([0]);
            digest.update(circumstance);
        }
        let mut key = String::new();
        for byte in digest.finalize() {
            // Writing to a string can't fail.
            let _ = write!(key, "{byte:02x}");
        }
        Self {
            file: file.map(Path::to_path_buf),
            key,
        }
    }

    /// The cached outcome of a trial: the error says why it fails.
    pub(crate) fn get(&self, trial: Tried) -> Option<Result<(), String>> {
        let outcome = self.note(trial)?;
        Some(if outcome == VERIFIED { Ok(()) } else { Err(outcome) })
    }

    /// The cached note of a trial whose outcome is neither yes nor no.
    pub(crate) fn note(&self, trial: Tried) -> Option<String> {
        let all = self.read();
        let note = all.get(&self.key)?.get(trial.to_string())?.as_str()?;
        Some(note.to_owned())
    }

    /// Keeps the outcome of a trial.
    pub(crate) fn put(&self, trial: Tried, outcome: &Result<(), String>) {
        self.put_note(trial, outcome.as_ref().map_or_else(String::as_str, |()| VERIFIED));
    }

    /// Keeps the note of a trial.
    pub(crate) fn put_note(&self, trial: Tried, text: &str) {
        let Some(file) = &self.file else { return };
        let mut all = self.read();
        if all.len() >= MAX_GRAPHS && !all.contains_key(&self.key) {
            all.clear();
        }
        let entry = all.entry(self.key.clone()).or_insert_with(|| json!({}));
        if let Some(entry) = entry.as_object_mut() {
            entry.insert(trial.to_string(), Value::from(text));
        }
        if let Err(error) = write(file, &Value::Object(all).to_string()) {
            tracing::debug!(file = %file.display(), %error, "The outcomes of graph edits can't be kept.");
        }
    }

    fn read(&self) -> Map<String, Value> {
        let bytes = self.file.as_ref().and_then(|file| std::fs::read(file).ok());
        bytes
            .and_then(|bytes| serde_json::from_slice(&bytes).ok())
            .unwrap_or_default()
    }
}

/// Size and time of change of the files in a model's folder that may hold weights, links resolved: part of the key, since a
/// graph says nothing about the weights beside it, and outcomes depend on them. Reading them whole would take as long as a
/// trial.
pub(crate) fn weights_identity(folder: &Path) -> String {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        let weights = path.extension().is_none_or(|extension| extension != "json");
        let Ok(metadata) = std::fs::metadata(&path) else {
            continue;
        };
        if weights && metadata.is_file() {
            files.push((entry.file_name(), metadata.len(), metadata.modified().ok()));
        }
    }
    files.sort();
    format!("{files:?}")
}

/// Writes a file atomically, so that a reader never sees half of it.
fn write(file: &Path, text: &str) -> std::io::Result<()> {
    if let Some(folder) = file.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let aside = file.with_extension(format!("{}.new", std::process::id()));
    std::fs::write(&aside, text)?;
    std::fs::rename(&aside, file)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::prepare::Level;

    const RAGGED: Tried = Tried::Edits(Prepare::form(Level::Ragged));
    const ROPE: Tried = Tried::Edits(Prepare::form(Level::Rope));

    #[test]
    fn outcomes_are_kept_for_the_same_circumstances_alone() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("cache/outcomes.json");
        let cache = EditCache::for_graph(b"graph", &["1.32", "cpu"], Some(&file));
        assert_eq!(cache.get(RAGGED), None);
        cache.put(RAGGED, &Err("differs".into()));
        cache.put(ROPE, &Ok(()));
        let again = EditCache::for_graph(b"graph", &["1.32", "cpu"], Some(&file));
        assert_eq!(again.get(RAGGED), Some(Err("differs".into())));
        assert_eq!(again.get(ROPE), Some(Ok(())));
        let i8 = |exactly| Tried::KvI8 {
            edits: Prepare::form(Level::Rope),
            exactly,
        };
        assert_eq!((again.get(i8(false)), again.get(i8(true))), (None, None));
        for other in [
            EditCache::for_graph(b"graph", &["1.33", "cpu"], Some(&file)),
            EditCache::for_graph(b"other", &["1.32", "cpu"], Some(&file)),
            EditCache::for_graph(b"graph", &["1.32", "cpu"], None),
        ] {
            assert_eq!(other.get(ROPE), None);
        }
        std::fs::write(&file, "no JSON").unwrap();
        assert_eq!(again.get(ROPE), None);
        again.put(ROPE, &Ok(()));
        assert_eq!(again.get(ROPE), Some(Ok(())));
    }
    #[test]
    fn other_weights_beside_a_graph_are_told_apart() {
        let folder = tempfile::tempdir().unwrap();
        let weights = folder.path().join("model.onnx.data");
        std::fs::write(&weights, "weights").unwrap();
        let first = weights_identity(folder.path());
        assert_eq!(weights_identity(folder.path()), first);
        std::fs::write(folder.path().join("manifest.json"), "{}").unwrap();
        assert_eq!(weights_identity(folder.path()), first);
        std::fs::write(&weights, "other weights").unwrap();
        assert_ne!(weights_identity(folder.path()), first);
    }
}
