//! Partial files: what has arrived of a file and what is known about it, so that another process can resume.
//!
//! Beside `FILE` stand `FILE.part`, the bytes so far, and `FILE.part.json`, which hash they are to have and under which
//! entity tag they came. The latter is written before the first byte, so that bytes of unknown origin are never kept.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::digest::{FileHasher, FileHashes};
use crate::pull_error::PullError;
use crate::remote_file::RemoteFile;

/// A file of which a part has arrived.
pub(crate) struct PartialFile {
    target: PathBuf,
    bytes: PathBuf,
    state: PathBuf,
    key: String,
    size: u64,
    file: File,
    hasher: FileHasher,
    length: u64,
    etag: Option<String>,
    discards: u32,
}

impl PartialFile {
    /// Opens what an earlier process left at `target`, or begins.
    pub(crate) fn open(target: &Path, wanted: &RemoteFile) -> Result<Self, PullError> {
        if let Some(folder) = target.parent() {
            std::fs::create_dir_all(folder).map_err(PullError::io(folder, "made"))?;
        }
        let (bytes, state) = (beside(target, ".part"), beside(target, ".part.json"));
        let key = wanted
            .expected
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
            .join(", ");
        let known: Value = std::fs::read(&state)
            .ok()
            .and_then(|text| serde_json::from_slice(&text).ok())
            .unwrap_or_default();
        let keep = known["expected"] == key.as_str() && known["size"] == wanted.size;
        let etag = known["etag"].as_str().map(ToOwned::to_owned).filter(|_| keep);
        if !keep {
            let _ = std::fs::remove_file(&bytes);
        }
        let hasher = if keep && bytes.exists() {
            Self::hash(&bytes, wanted.size)?
        } else {
            FileHasher::new(wanted.size)
        };
        let mut partial = Self {
            target: target.to_path_buf(),
            file: OpenOptions::new()
                .create(true)
                .append(true)
                .open(&bytes)
                .map_err(PullError::io(&bytes, "written"))?,
            bytes,
            state,
            key,
            size: wanted.size,
            length: hasher.size(),
            hasher,
            etag,
            discards: 0,
        };
        if partial.length > partial.size {
            partial.reset()?;
        }
        partial.note()?;
        Ok(partial)
    }

    fn hash(bytes: &Path, size: u64) -> Result<FileHasher, PullError> {
        let mut hasher = FileHasher::new(size);
        let mut file = File::open(bytes).map_err(PullError::io(bytes, "read"))?;
        let mut buffer = vec![0; 1 << 18];
        loop {
            match std::io::Read::read(&mut file, &mut buffer).map_err(PullError::io(bytes, "read"))? {
                0 => return Ok(hasher),
                read => hasher.update(&buffer[..read]),
            }
        }
    }

    /// The number of bytes that have arrived.
    pub(crate) fn length(&self) -> u64 {
        self.length
    }

    /// How often bytes were discarded since it was opened.
    pub(crate) fn discards(&self) -> u32 {
        self.discards
    }

    /// The entity tag of the bytes.
    pub(crate) fn etag(&self) -> Option<&str> {
        self.etag.as_deref()
    }

    /// Sets the entity tag of the bytes to come.
    pub(crate) fn set_etag(&mut self, etag: Option<&str>) -> Result<(), PullError> {
        if self.etag.as_deref() != etag {
            self.etag = etag.map(ToOwned::to_owned);
            self.note()?;
        }
        Ok(())
    }

    pub(crate) fn append(&mut self, bytes: &[u8]) -> Result<(), PullError> {
        self.file
            .write_all(bytes)
            .map_err(PullError::io(&self.bytes, "written"))?;
        self.hasher.update(bytes);
        self.length += bytes.len() as u64;
        Ok(())
    }

    /// Discards what has arrived.
    pub(crate) fn reset(&mut self) -> Result<(), PullError> {
        self.discards += u32::from(self.length > 0);
        self.file
            .set_len(0)
            .map_err(PullError::io(&self.bytes, "emptied"))?;
        self.hasher = FileHasher::new(self.size);
        self.length = 0;
        self.etag = None;
        self.note()
    }

    pub(crate) fn seen(&self) -> FileHashes {
        self.hasher.seen()
    }

    /// Syncs the complete file and moves it to its target.
    pub(crate) fn finish(self) -> Result<(), PullError> {
        self.file
            .sync_all()
            .map_err(PullError::io(&self.bytes, "written"))?;
        std::fs::rename(&self.bytes, &self.target).map_err(PullError::io(&self.target, "put in place"))?;
        let _ = std::fs::remove_file(&self.state);
        Ok(())
    }

    /// Writes the state atomically: a process killed meanwhile must not leave bytes without a state, since they would
    /// be discarded.
    fn note(&self) -> Result<(), PullError> {
        let state = json!({ "expected": self.key, "size": self.size, "etag": self.etag });
        let fresh = beside(&self.target, ".part.json.part");
        std::fs::write(&fresh, state.to_string())
            .and_then(|()| std::fs::rename(&fresh, &self.state))
            .map_err(PullError::io(&self.state, "written"))
    }
}

/// The number of bytes of `target` that an earlier process left.
pub(crate) fn arrived(target: &Path) -> u64 {
    let length = |path: &Path| path.metadata().map_or(0, |metadata| metadata.len());
    length(target).max(length(&beside(target, ".part")))
}

fn beside(target: &Path, end: &str) -> PathBuf {
    let mut name = target.file_name().unwrap_or_default().to_os_string();
    name.push(end);
    target.with_file_name(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::ExpectedHash;

    fn wanted(content: &[u8]) -> RemoteFile {
        let mut hasher = FileHasher::new(content.len() as u64);
        hasher.update(content);
        RemoteFile {
            remote: "f".into(),
            path: "f".into(),
            size: content.len() as u64,
            expected: vec![ExpectedHash::Sha256(hasher.seen().sha256)],
        }
    }

    #[test]
    fn another_process_goes_on_where_the_last_one_was() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("a/f");
        let wanted = wanted(b"hello world");
        let mut partial = PartialFile::open(&target, &wanted).unwrap();
        partial.set_etag(Some("\"1\"")).unwrap();
        partial.append(b"hello ").unwrap();
        drop(partial);
        assert_eq!(arrived(&target), 6);
        let mut partial = PartialFile::open(&target, &wanted).unwrap();
        assert_eq!((partial.length(), partial.etag()), (6, Some("\"1\"")));
        partial.append(b"world").unwrap();
        assert!(partial.seen().check(wanted.size, &wanted.expected).is_ok());
        partial.finish().unwrap();
        assert_eq!(std::fs::read(&target).unwrap(), b"hello world");
        assert_eq!(std::fs::read_dir(folder.path().join("a")).unwrap().count(), 1);
    }

    #[test]
    fn bytes_of_another_content_are_not_kept() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("f");
        let mut partial = PartialFile::open(&target, &wanted(b"one")).unwrap();
        partial.append(b"on").unwrap();
        drop(partial);
        assert_eq!(PartialFile::open(&target, &wanted(b"two")).unwrap().length(), 0);
        // Bytes that no state vouches for.
        std::fs::remove_file(folder.path().join("f.part.json")).unwrap();
        std::fs::write(folder.path().join("f.part"), "tw").unwrap();
        assert_eq!(PartialFile::open(&target, &wanted(b"two")).unwrap().length(), 0);
    }
}
