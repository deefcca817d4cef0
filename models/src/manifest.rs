//! `manifest.json`, the manifest of a model directory. Exported directories have none; pulling or importing one
//! writes it.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write as _;
use std::path::Path;

use serde_json::{Map, Value, json};

use crate::digest::FileHashes;
use crate::error::{ModelError, read_json};
use crate::pull_error::PullError;
use crate::redaction::without_user;
use crate::safe_path::is_safe;

/// The file's name.
pub(crate) const MANIFEST: &str = "manifest.json";

/// The file's content.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Manifest {
    /// A name for people, the status and the replies; else the directory's name serves.
    pub name: Option<String>,
    /// Whether the model only demonstrates the program: its answers are not to be relied on.
    pub demonstration: bool,
    /// A sentence for the log.
    pub note: Option<String>,
    /// The licence, as its publisher names it.
    pub licence: Option<String>,
    /// Where it was pulled from.
    pub origin: Option<Origin>,
    /// Every file but this one, by its path with `/`.
    pub files: BTreeMap<String, FileRecord>,
    /// Unknown keys, kept as they are.
    others: Map<String, Value>,
}

/// The origin of a pulled model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// The hub or mirror.
    pub hub: String,
    /// `organisation/repository`.
    pub repository: String,
    /// The commit that all files are of.
    pub commit: String,
    /// The folder in the repository; empty for its root.
    pub folder: String,
}

/// The expected hash and size of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileRecord {
    /// SHA-256 of its content, in hex.
    pub sha256: String,
    /// Its bytes.
    pub size: u64,
}

impl Manifest {
    /// Reads the file; a directory without one has the empty manifest.
    pub(crate) fn read(path: &Path) -> Result<Self, ModelError> {
        if !path.exists() {
            return Ok(Self::default());
        }
        let json = read_json(path, "it describes the model")?;
        Self::of(json).map_err(|fault| ModelError::invalid(path, fault))
    }

    /// Reads JSON that stands in an archive.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, String> {
        Self::of(serde_json::from_slice(bytes).map_err(|error| format!("is no JSON: {error}"))?)
    }

    fn of(json: Value) -> Result<Self, String> {
        let Value::Object(mut map) = json else {
            return Err("is no JSON object".to_owned());
        };
        let origin = map.remove("source").map(|source| origin(&source)).transpose()?;
        let files = map
            .remove("files")
            .map_or(Ok(BTreeMap::new()), |files| records(&files))?;
        let mut text = |key: &str| match map.remove(key) {
            Some(Value::String(text)) => Some(text),
            _ => None,
        };
        Ok(Self {
            name: text("name"),
            note: text("note"),
            licence: text("licence"),
            demonstration: map.remove("demonstration").is_some_and(|value| value == true),
            origin,
            files,
            others: map,
        })
    }

    /// The file's text, the same for the same content.
    pub(crate) fn text(&self) -> String {
        let mut map = self.others.clone();
        let mut set = |key: &str, value: Option<Value>| {
            if let Some(value) = value {
                map.insert(key.to_owned(), value);
            }
        };
        set("name", self.name.clone().map(Value::from));
        set("demonstration", self.demonstration.then(|| true.into()));
        set("note", self.note.clone().map(Value::from));
        set("licence", self.licence.clone().map(Value::from));
        set(
            "source",
            self.origin.as_ref().map(|origin| {
                json!({
                    "hub": origin.hub,
                    "repository": origin.repository,
                    "commit": origin.commit,
                    "folder": origin.folder,
                })
            }),
        );
        let record = |(path, file): (&String, &FileRecord)| {
            (path.clone(), json!({ "sha256": file.sha256, "size": file.size }))
        };
        let files: Map<String, Value> = self.files.iter().map(record).collect();
        set("files", (!files.is_empty()).then_some(Value::Object(files)));
        format!("{:#}\n", Value::Object(map))
    }

    /// Writes the file atomically.
    pub(crate) fn write(&self, path: &Path) -> Result<(), PullError> {
        let fresh = path.with_extension("json.new");
        let write = || {
            // Windows syncs only what is open for writing.
            let mut file = File::create(&fresh)?;
            file.write_all(self.text().as_bytes())?;
            file.sync_all()?;
            std::fs::rename(&fresh, path)
        };
        write().map_err(PullError::io(path, "written"))
    }

    /// The bytes of all files.
    pub fn bytes(&self) -> u64 {
        self.files.values().map(|file| file.size).sum()
    }
}

impl From<FileHashes> for FileRecord {
    fn from(seen: FileHashes) -> Self {
        Self {
            sha256: seen.sha256,
            size: seen.size,
        }
    }
}

fn origin(source: &Value) -> Result<Origin, String> {
    let text = |key: &str| {
        source[key]
            .as_str()
            .map(ToOwned::to_owned)
            .ok_or_else(|| format!("source.{key} must be text"))
    };
    Ok(Origin {
        // Older versions noted a mirror's password with it.
        hub: without_user(&text("hub")?),
        repository: text("repository")?,
        commit: text("commit")?,
        folder: text("folder")?,
    })
}

fn records(files: &Value) -> Result<BTreeMap<String, FileRecord>, String> {
    let files = files.as_object().ok_or("files must be an object")?;
    files
        .iter()
        .map(|(path, record)| {
            let hash = record["sha256"].as_str().unwrap_or_default();
            let is_hash = hash.len() == 64 && hash.bytes().all(|byte| byte.is_ascii_hexdigit());
            match record["size"].as_u64() {
                Some(size) if is_hash && is_safe(path) && path != MANIFEST => {
                    let sha256 = hash.to_lowercase();
                    Ok((path.clone(), FileRecord { sha256, size }))
                }
                _ => Err(format!(
                    "files: {path:?} must be a path below, with sha256 and size"
                )),
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let hash = "0123456789abcdef".repeat(4);
        let json = json!({
            "name": "m", "demonstration": true, "note": "n", "licence": "mit", "trained_by": [1, 2],
            "source": {"hub": "https://h", "repository": "o/r", "commit": "abcdef0", "folder": "a/b"},
            "files": {"x/y.onnx": {"sha256": hash, "size": 5}},
        });
        let manifest = Manifest::parse(json.to_string().as_bytes()).unwrap();
        assert_eq!(Manifest::parse(manifest.text().as_bytes()).unwrap(), manifest);
        assert_eq!(serde_json::from_str::<Value>(&manifest.text()).unwrap(), json);
    }

    #[test]
    fn wrong_records_are_refused() {
        for files in [
            json!({"../x": {"sha256": "0".repeat(64), "size": 1}}),
            json!({"x": {"sha256": "0", "size": 1}}),
            json!({"x": {"sha256": "0".repeat(64)}}),
            json!([1]),
        ] {
            let said = Manifest::parse(json!({ "files": files }).to_string().as_bytes()).unwrap_err();
            assert!(said.contains("files"), "{said}");
        }
        assert!(Manifest::parse(b"[]").is_err());
    }
}
