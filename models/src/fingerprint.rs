//! The fingerprint of a model: a digest over all of its files.
//!
//! Weights are gigabytes. The digest of a file is kept under the file's inode, size and time, so that only changed
//! files are read.

use std::fmt::Write as _;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use crate::error::ModelError;

/// The digest of the files that stand directly in `folder`, in hex. `remembered` is where digests of single files are
/// kept from one time to the next; that it can't be read or written costs time alone.
pub(crate) fn of_folder(folder: &Path, remembered: Option<&Path>) -> Result<String, ModelError> {
    let unreadable = |path: &Path| {
        let path = path.to_path_buf();
        move |source| ModelError::Unreadable { path, source }
    };
    let known: Map<String, Value> = remembered
        .and_then(|file| serde_json::from_slice(&std::fs::read(file).ok()?).ok())
        .unwrap_or_default();
    let mut files: Vec<PathBuf> = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(unreadable(folder))? {
        let path = entry.map_err(unreadable(folder))?.path();
        if path.is_file() {
            files.push(path);
        }
    }
    files.sort();
    let mut now = Map::new();
    let mut whole = Sha256::new();
    for path in files {
        let metadata = path.metadata().map_err(unreadable(&path))?;
        let marks = marks(&metadata);
        let full = path
            .canonicalize()
            .map_err(unreadable(&path))?
            .display()
            .to_string();
        let digest = match known.get(&full) {
            Some(entry) if entry["marks"] == marks && entry["sha256"].is_string() => {
                entry["sha256"].as_str().unwrap_or_default().to_owned()
            }
            _ => of_file(&path).map_err(unreadable(&path))?,
        };
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        whole.update(format!("{} {name}\n{digest}\n", name.len()));
        now.insert(full, json!({ "marks": marks, "sha256": digest }));
    }
    if let Some(file) = remembered.filter(|_| now != known) {
        let _ = std::fs::write(file, Value::Object(now).to_string());
    }
    Ok(hex(&whole.finalize()))
}

/// The attributes that change when a file does.
fn marks(metadata: &std::fs::Metadata) -> Value {
    let modified = metadata.modified().ok();
    let since = modified.and_then(|time| time.duration_since(UNIX_EPOCH).ok());
    // As text: nanoseconds are more than a JSON number holds exactly.
    let time = since.map_or_else(String::new, |since| since.as_nanos().to_string());
    json!([inode(metadata), metadata.len(), time])
}

#[cfg(unix)]
fn inode(metadata: &std::fs::Metadata) -> u64 {
    std::os::unix::fs::MetadataExt::ino(metadata)
}

#[cfg(not(unix))]
fn inode(_: &std::fs::Metadata) -> u64 {
    0
}

fn of_file(path: &Path) -> std::io::Result<String> {
    let mut file = File::open(path)?;
    let mut digest = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hex(&digest.finalize())),
            read => digest.update(&buffer[..read]),
        }
    }
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn it_changes_with_any_file_and_is_remembered() {
        let folder = tempfile::tempdir().unwrap();
        let state = tempfile::tempdir().unwrap();
        let remembered = state.path().join("digests.json");
        std::fs::write(folder.path().join("a"), "one").unwrap();
        std::fs::write(folder.path().join("b"), "two").unwrap();
        let first = of_folder(folder.path(), Some(&remembered)).unwrap();
        assert_eq!(first, of_folder(folder.path(), None).unwrap());
        // What is remembered is what is used while the file stays the same.
        let text = std::fs::read_to_string(&remembered).unwrap();
        let one = of_file(&folder.path().join("a")).unwrap();
        std::fs::write(&remembered, text.replace(&one, "0000")).unwrap();
        assert_ne!(first, of_folder(folder.path(), Some(&remembered)).unwrap());
        std::fs::write(&remembered, "{broken").unwrap();
        assert_eq!(first, of_folder(folder.path(), Some(&remembered)).unwrap());
        std::fs::write(folder.path().join("b"), "three").unwrap();
        assert_ne!(first, of_folder(folder.path(), Some(&remembered)).unwrap());
    }
}
