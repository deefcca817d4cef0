//! The staging folder of a version: what has arrived of it, and the room for it.

use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use super::ModelStore;
use crate::digest::{FileHasher, FileHashes};
use crate::manifest::{MANIFEST, Manifest};
use crate::progress::{Event, Watch};
use crate::pull_error::{PullError, Size};
use crate::remote_file::RemoteFile;

impl ModelStore {
    /// The staging folder of a version. Those of other versions are removed: they can't be resumed any more.
    pub(crate) fn staging(&self, name: &str, version: &str) -> Result<PathBuf, PullError> {
        let staging = self.partial().join(format!("{name}@{version}"));
        self.clear_staging(name, Some(&staging))?;
        std::fs::create_dir_all(&staging).map_err(PullError::io(&staging, "made"))?;
        Ok(staging)
    }

    pub(super) fn clear_staging(&self, name: &str, but: Option<&Path>) -> Result<(), PullError> {
        for path in self.stagings(name) {
            if but != Some(path.as_path()) {
                self.discard(name, &path)?;
            }
        }
        Ok(())
    }

    fn stagings(&self, name: &str) -> Vec<PathBuf> {
        let begin = format!("{name}@");
        let of_name = |path: &PathBuf| {
            let file_name = path.file_name().unwrap_or_default();
            file_name.to_string_lossy().starts_with(&begin)
        };
        let items = std::fs::read_dir(self.partial()).into_iter().flatten().flatten();
        items.map(|item| item.path()).filter(of_name).collect()
    }

    pub(super) fn has_remains(&self, name: &str) -> bool {
        self.previous(name).exists() || !self.stagings(name).is_empty()
    }

    /// Links files of the present or the previous version that have the wanted content, so that they need not be
    /// fetched. They are hashed as fetched ones are.
    pub(crate) fn reuse(&self, name: &str, staging: &Path, files: &[RemoteFile]) {
        for place in [self.place(name), self.previous(name)] {
            let known = Manifest::read(&place.join(MANIFEST)).unwrap_or_default();
            for file in files {
                let target = staging.join(&file.path);
                let same = known
                    .files
                    .iter()
                    .find(|(_, record)| record.size == file.size && file.expects_sha256(&record.sha256));
                let (Some((path, _)), false) = (same, target.exists()) else {
                    continue;
                };
                let made = target
                    .parent()
                    .is_some_and(|parent| std::fs::create_dir_all(parent).is_ok());
                // What can't be linked or copied is fetched.
                if made && std::fs::hard_link(place.join(path), &target).is_err() {
                    let _ = std::fs::copy(place.join(path), &target);
                }
            }
        }
    }

    /// An empty staging folder.
    pub(super) fn fresh_staging(&self, name: &str, version: &str) -> Result<PathBuf, PullError> {
        self.clear_staging(name, None)?;
        self.staging(name, version)
    }

    /// The bytes that are free.
    fn free(&self) -> Result<Option<u64>, PullError> {
        (self.free)(&self.folder).map_err(PullError::io(&self.folder, "measured"))
    }

    /// Makes room for `needed` bytes: removes the previous version where it must; an error where that is not enough.
    pub(crate) fn make_room(&self, name: &str, needed: u64, watch: Watch<'_>) -> Result<(), PullError> {
        let enough = || Ok::<_, PullError>(self.free()?.is_none_or(|free| free >= needed));
        if enough()? {
            return Ok(());
        }
        let previous = self.previous(name);
        if previous.exists() {
            self.discard(name, &previous)?;
            watch(&Event::Dropped { name });
            if enough()? {
                return Ok(());
            }
        }
        Err(PullError::Space {
            folder: self.folder.clone(),
            needed: Size(needed),
            free: Size(self.free()?.unwrap_or(0)),
        })
    }
}

/// Writes all of `from` to a new file at `path`, synced, and returns its hashes. `size` is what is expected: more is
/// not written. `at` is called with the bytes so far.
pub(super) fn write_hashed(
    from: &mut impl Read,
    path: &Path,
    size: u64,
    at: impl Fn(u64),
) -> Result<FileHashes, PullError> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(PullError::io(folder, "made"))?;
    }
    let mut file = File::create(path).map_err(PullError::io(path, "written"))?;
    let mut hasher = FileHasher::new(size);
    let mut buffer = vec![0; 1 << 18];
    loop {
        let read = from
            .read(&mut buffer)
            .map_err(PullError::io(path, "read at its source"))?;
        hasher.update(&buffer[..read]);
        if read == 0 || hasher.size() > size {
            break;
        }
        file.write_all(&buffer[..read])
            .map_err(PullError::io(path, "written"))?;
        at(hasher.size());
    }
    file.sync_all().map_err(PullError::io(path, "written"))?;
    Ok(hasher.seen())
}
