//! Pinned prefixes: beginnings of prompts that are computed at the start and kept on disk. They are the configured
//! system prompts, and the constant beginnings of the rules' prompts.
//!
//! Each prefix has one file below the store: a header of one JSON line, then keys and values, then a digest of both.
//! A file that is damaged or whose header differs is not used, with a warning, and written again. The header names
//! library, provider, processor and program version, since keys and values that others have computed may differ.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use phi_edge_engine::{Caps, Decoder, Engine, Failure, Symbol};
use phi_edge_models::{ModelDir, TextModel};
use phi_edge_rules::{Rule, summary};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::exit::{Exit, Fault};

/// The format in the header of a prefix file; the number is its version.
const FORMAT: &str = "phi-edge prefix 1";
const FILE_EXTENSION: &str = "prefix";

/// The length of the shortest prefix of a rule that is pinned, in tokens: shorter ones are computed as fast as looked
/// up.
const MIN_RULE_PREFIX_TOKENS: usize = 32;

/// The beginning of prompts, as text.
#[derive(Debug, Clone)]
pub(crate) struct PromptPrefix {
    /// The origin of the prefix, for messages.
    of: String,
    system: Option<String>,
    user: String,
    /// Whether the configuration asks for this prefix: then a failure to pin it is a fault of the configuration.
    required: bool,
}

/// The prefixes of a configuration: its system prompts, and the prompts of its rules.
pub(crate) fn prompt_prefixes(system_prompts: &[String], rules: &[Rule]) -> Vec<PromptPrefix> {
    let asked = system_prompts.iter().enumerate().map(|(n, system)| PromptPrefix {
        of: format!("runtime.system_prompts: number {}", n + 1),
        system: Some(system.clone()),
        user: String::new(),
        required: true,
    });
    let of_rules = rules.iter().filter_map(|rule| {
        Some(PromptPrefix {
            of: format!("rule \"{}\"", rule.name),
            user: summary::prompt_prefix(&rule.summary.prompt)?.to_owned(),
            system: rule.summary.system.clone(),
            required: false,
        })
    });
    asked.chain(of_rules).collect()
}

/// The place where prefixes are kept, and the identity of what computes them.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PrefixContext<'a> {
    /// The store's folder.
    pub(crate) store: &'a Path,
    /// What keys and values depend on beside the model and the tokens.
    pub(crate) computed_by: &'a [String],
}

/// A prefix that is not pinned: prompts that begin with it are computed whole.
pub(crate) struct UnkeptPrefix {
    /// Its origin.
    pub(crate) of: String,
    pub(crate) tokens: usize,
    pub(crate) failure: Failure,
}

/// Pins the prefixes in `engine`, and returns those for which there is no room.
pub(crate) fn pin<D: Decoder>(
    engine: &mut Engine<D>,
    model: &ModelDir,
    text: &TextModel,
    prefixes: &[PromptPrefix],
    place: PrefixContext<'_>,
) -> Result<Vec<UnkeptPrefix>, Fault> {
    let files = PrefixFiles::open(engine.caps(), model, place);
    let (mut used, mut unkept) = (Vec::new(), Vec::new());
    let mut pinned: Vec<Vec<Symbol>> = Vec::new();
    for prefix in prefixes {
        let wrong =
            |reason: String| Fault::new(Exit::Config, format!("{} can't be kept: {reason}", prefix.of));
        let ids = text
            .prefix(prefix.system.as_deref(), &prefix.user)
            .map_err(|error| wrong(error.to_string()))?;
        let known = pinned.iter().any(|other| other.starts_with(&ids));
        if known || (!prefix.required && ids.len() < MIN_RULE_PREFIX_TOKENS) {
            continue;
        }
        let file = files.as_ref().map(|files| files.path(&ids));
        let saved = files.as_ref().and_then(|files| files.read(&ids));
        let loaded = match engine.pin(&ids, saved.as_deref()) {
            Ok(loaded) => loaded,
            Err(failure @ Failure::ContextOverflow { .. }) if prefix.required => {
                let bound = if engine.caps().context_length < model.config().context_length {
                    ", which is what the memory for keys and values holds (runtime.kv_memory)"
                } else {
                    ""
                };
                let advice = "shorten it, or take it out of runtime.system_prompts";
                return Err(wrong(format!("{failure}{bound}; {advice}")));
            }
            // It may fit at the next start; until then prompts are computed whole.
            Err(failure) => {
                used.extend(file);
                unkept.push(UnkeptPrefix {
                    of: prefix.of.clone(),
                    tokens: ids.len(),
                    failure,
                });
                continue;
            }
        };
        drop(saved);
        tracing::info!(of = prefix.of, tokens = ids.len(), loaded, "prefix kept");
        if let Some(files) = files.as_ref().filter(|_| !loaded) {
            files.write(engine, &ids);
        }
        used.extend(file);
        pinned.push(ids);
    }
    if let Some(files) = files {
        files.remove_all_but(&used);
    }
    Ok(unkept)
}

/// The folder of prefix files, and what their content depends on beside the tokens.
struct PrefixFiles {
    folder: PathBuf,
    /// The header without the tokens: the model, the format of the memory, and what has computed it.
    made_of: Value,
}

impl PrefixFiles {
    /// Opens the folder; none, with a warning, where nothing can be kept. Prefixes are then computed at each start.
    fn open(caps: &Caps, model: &ModelDir, place: PrefixContext<'_>) -> Option<Self> {
        let folder = place.store.join("prefixes");
        if let Err(error) = fs::create_dir_all(&folder) {
            tracing::warn!(
                folder = %folder.display(),
                %error,
                "prefixes can't be kept on disk: they are computed at each start"
            );
            return None;
        }
        let model = match model.fingerprint(Some(&place.store.join("model-digests.json"))) {
            Ok(fingerprint) => fingerprint,
            Err(error) => {
                tracing::warn!(%error, "prefixes are not kept on disk: the model's files can't be read");
                return None;
            }
        };
        let made_of = made_of(&json!(model), caps, place.computed_by);
        Some(Self { folder, made_of })
    }

    fn header(&self, ids: &[Symbol]) -> String {
        let mut header = self.made_of.clone();
        header["tokens"] = ids.iter().map(|symbol| symbol.token().map(|id| id.0)).collect();
        header.to_string()
    }

    fn path(&self, ids: &[Symbol]) -> PathBuf {
        let digest = Sha256::digest(self.header(ids));
        let name: u64 = digest
            .iter()
            .take(8)
            .fold(0, |name, byte| name << 8 | u64::from(*byte));
        self.folder.join(format!("{name:016x}.{FILE_EXTENSION}"))
    }

    /// The keys and values of `ids`, if they were kept.
    fn read(&self, ids: &[Symbol]) -> Option<Vec<u8>> {
        let path = self.path(ids);
        let mut bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return None,
            Err(error) => {
                tracing::warn!(file = %path.display(), %error, "a kept prefix can't be read; it is computed");
                return None;
            }
        };
        match payload(&bytes, &self.header(ids)) {
            Ok(range) => {
                bytes.truncate(range.end);
                bytes.drain(..range.start);
                Some(bytes)
            }
            Err(reason) => {
                tracing::warn!(file = %path.display(), reason, "a kept prefix is not used; it is computed");
                None
            }
        }
    }

    /// Writes the keys and values that the engine has computed. A failure only costs the next start time.
    fn write<D: Decoder>(&self, engine: &mut Engine<D>, ids: &[Symbol]) {
        let Some(saved) = engine.saved_prefix(ids) else {
            return;
        };
        let path = self.path(ids);
        if let Err(error) = write_whole(&path, &self.header(ids), &saved) {
            tracing::warn!(file = %path.display(), %error, "a prefix can't be kept; it is computed at the next start");
        }
    }

    /// Removes the files of other models and other configurations, which would pile up.
    fn remove_all_but(&self, used: &[PathBuf]) {
        for entry in fs::read_dir(&self.folder).into_iter().flatten().flatten() {
            let path = entry.path();
            let ours = path
                .extension()
                .is_some_and(|extension| extension == FILE_EXTENSION);
            if ours && !used.contains(&path) {
                let _ = fs::remove_file(&path);
            }
        }
    }
}

/// What the content of a file depends on beside the tokens.
fn made_of(model: &Value, caps: &Caps, computed_by: &[String]) -> Value {
    json!({
        "form": FORMAT, "model": model, "kv": format!("{:?}", caps.kv_type),
        "bytes_per_token": caps.kv_bytes_per_token, "rope_boundary": caps.rope_boundary,
        "version": env!("CARGO_PKG_VERSION"), "computed_by": computed_by,
    })
}

/// Writes a file under another name until it is on disk, so that a power cut leaves a whole file or none.
fn write_whole(path: &Path, header: &str, saved: &[u8]) -> std::io::Result<()> {
    let partial = path.with_extension("partial");
    let mut file = File::create(&partial)?;
    let mut digest = Sha256::new();
    for part in [header.as_bytes(), b"\n", saved] {
        digest.update(part);
        file.write_all(part)?;
    }
    file.write_all(&digest.finalize())?;
    file.sync_all()?;
    fs::rename(&partial, path)
}

/// The range of keys and values in a file with this header. The error says why the file can't be used.
fn payload(bytes: &[u8], header: &str) -> Result<std::ops::Range<usize>, &'static str> {
    const DIGEST_BYTES: usize = 32;
    let start = header.len() + 1;
    if bytes.get(..header.len()) != Some(header.as_bytes()) || bytes.get(header.len()) != Some(&b'\n') {
        return Err("it is of another model or another form");
    }
    let end = bytes.len().checked_sub(DIGEST_BYTES).filter(|end| *end >= start);
    let end = end.ok_or("it is cut short")?;
    if Sha256::digest(&bytes[..end]).as_slice() != &bytes[end..] {
        return Err("it is damaged");
    }
    Ok(start..end)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use phi_edge_engine::{KvType, TokenId};

    use super::*;

    fn caps() -> Caps {
        Caps::plain(2, 10)
    }

    #[test]
    fn what_something_else_has_computed_is_not_used_and_goes() {
        let folder = tempfile::tempdir().unwrap();
        let by = ["library 1.32", "cpu", "ragged", "1", "1", "avx512"].map(str::to_owned);
        let files = |caps: &Caps, by: &[String]| PrefixFiles {
            folder: folder.path().to_owned(),
            made_of: made_of(&json!({"model.onnx": "digest"}), caps, by),
        };
        let ids = [1, 2].map(|id| Symbol::Token(TokenId(id)));
        let keep = |files: &PrefixFiles| {
            write_whole(&files.path(&ids), &files.header(&ids), b"keys and values").unwrap();
        };
        let ours = files(&caps(), &by);
        keep(&ours);
        assert_eq!(ours.read(&ids).as_deref(), Some(&b"keys and values"[..]));
        let mut others: Vec<PrefixFiles> = (0..by.len())
            .map(|changed| {
                let mut by = by.clone();
                by[changed].push_str(" of another kind");
                files(&caps(), &by)
            })
            .collect();
        for kv_type in [KvType::F16, KvType::I8] {
            let caps = Caps { kv_type, ..caps() };
            others.push(files(&caps, &by));
        }
        for other in &others {
            assert_eq!(other.read(&ids), None, "{}", other.made_of);
            // Not even under the name of its own.
            fs::copy(ours.path(&ids), other.path(&ids)).unwrap();
            assert_eq!(other.read(&ids), None, "{}", other.made_of);
            keep(other);
        }
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), others.len() + 1);
        ours.remove_all_but(&[ours.path(&ids)]);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
        assert!(ours.read(&ids).is_some());
        assert!(ours.header(&ids).contains(env!("CARGO_PKG_VERSION")));
    }

    #[test]
    fn a_damaged_or_foreign_file_is_told_from_a_good_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.prefix");
        write_whole(&path, "header", b"keys and values").unwrap();
        let good = fs::read(&path).unwrap();
        let range = payload(&good, "header").unwrap();
        assert_eq!(&good[range], b"keys and values");
        assert!(payload(&good, "other!").is_err());
        for at in 0..good.len() {
            let mut damaged = good.clone();
            damaged[at] ^= 1;
            assert!(payload(&damaged, "header").is_err(), "byte {at}");
            assert!(payload(&good[..at], "header").is_err(), "{at} bytes");
        }
    }
}
