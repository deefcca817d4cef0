//! The folder that holds models: one folder each, put in place whole, the version before it kept.
//!
//! | path | what |
//! | --- | --- |
//! | `NAME/` | a model, complete and verified |
//! | `NAME.previous/` | the version before it, until the next one comes or its room is needed |
//! | `.partial/NAME@COMMIT/` | what has arrived of a version |
//! | `.partial/NAME.lock` | held by the process that works on NAME |
//! | `.partial/NAME.switch/` | for the instant of a switch: the new version, then the old one |
//! | `.former` | where the link that the configuration names pointed before |

mod archive;
mod compare;
mod intake;
mod link;
mod system;

use std::fs::{File, TryLockError};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

pub use compare::Fault;
pub(crate) use compare::{compare, sweep};
pub use link::ModelLink;

use system::{exchange, free_space, sync_folder};

use crate::digest::{Hasher, Seen};
use crate::error::ModelError;
use crate::manifest::{MANIFEST, Manifest};
use crate::progress::{Event, Watch};
use crate::pull_error::{PullError, Size};
use crate::remote_file::Wanted;

const PREVIOUS: &str = ".previous";

/// Tells the bytes that are free where a folder is; `None` where that can't be told.
pub type FreeSpace = fn(&Path) -> std::io::Result<Option<u64>>;

/// The folder that holds models.
#[derive(Debug, Clone)]
pub struct Shelf {
    folder: PathBuf,
    free: FreeSpace,
}

/// A model on the shelf.
#[derive(Debug, Clone)]
pub struct ShelfEntry {
    /// Its name: that of its folder.
    pub name: String,
    /// Its folder.
    pub path: PathBuf,
    /// What it says about itself.
    pub manifest: Manifest,
    /// The bytes of its files.
    pub bytes: u64,
    /// The version before it is kept.
    pub has_previous: bool,
}

/// Held while a process works on a model; the system lets go of it when the process ends, however it does.
pub(crate) struct Lock {
    _file: File,
}

impl Shelf {
    /// The models in `folder`, which need not exist yet.
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        Self {
            folder: folder.into(),
            free: free_space,
        }
    }

    /// With another way of telling what is free, for tests.
    #[must_use]
    pub fn with_free_space(mut self, free: FreeSpace) -> Self {
        self.free = free;
        self
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The folder of a model that is there.
    pub fn find(&self, name: &str) -> Result<PathBuf, PullError> {
        check_name(name)?;
        let place = self.place(name);
        if place.is_dir() {
            return Ok(place);
        }
        Err(PullError::NoSuchModel {
            name: name.to_owned(),
            folder: self.folder.clone(),
        })
    }

    /// All models, by name.
    pub fn entries(&self) -> Result<Vec<ShelfEntry>, PullError> {
        let mut entries = Vec::new();
        if !self.folder.exists() {
            return Ok(entries);
        }
        let unreadable = || PullError::io(&self.folder, "read");
        for item in std::fs::read_dir(&self.folder).map_err(unreadable())? {
            let path = item.map_err(unreadable())?.path();
            let name = path
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned();
            if check_name(&name).is_err() || !path.is_dir() {
                continue;
            }
            let files = compare::walk(&path)?;
            let size = |file: &String| path.join(file).metadata().map_or(0, |metadata| metadata.len());
            entries.push(ShelfEntry {
                manifest: Manifest::read(&path.join(MANIFEST)).unwrap_or_default(),
                bytes: files.iter().map(size).sum(),
                has_previous: self.previous(&name).is_dir(),
                name,
                path,
            });
        }
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(entries)
    }

    /// Reads every file of a model directory again and holds it against its manifest: what is wrong, missing or more
    /// than the manifest names.
    pub fn verify(directory: &Path) -> Result<Vec<Fault>, PullError> {
        if !directory.is_dir() {
            return Err(ModelError::NoDirectory(directory.to_path_buf()).into());
        }
        let path = directory.join(MANIFEST);
        let manifest = Manifest::read(&path)?;
        if manifest.files.is_empty() {
            let fault =
                "holds no hashes to verify against; `phi-edge pull DIR` takes a folder in and notes them";
            return Err(ModelError::invalid(&path, fault).into());
        }
        compare(directory, &manifest)
    }

    /// Removes a model, the version before it and what has arrived of others; not the one that `link` points to.
    pub fn remove(&self, name: &str, link: &ModelLink) -> Result<(), PullError> {
        let place = match self.find(name) {
            Err(PullError::NoSuchModel { .. }) if self.has_remains(name) => self.place(name),
            found => found?,
        };
        if link.points_to(&place) {
            return Err(PullError::Refusal {
                what: name.to_owned(),
                fault: format!(
                    "is in use ({} points to it); use another one first (phi-edge models use NAME)",
                    link.path().display()
                ),
            });
        }
        let _lock = self.lock(name)?;
        self.discard(name, &place)?;
        self.discard(name, &self.previous(name))?;
        self.clear_staging(name, None)
    }

    /// Lets a model and the version before it change places.
    pub fn roll_back(&self, name: &str) -> Result<(), PullError> {
        let _lock = self.lock(name)?;
        let (place, previous) = (self.place(name), self.previous(name));
        if !previous.is_dir() {
            return Err(PullError::Refusal {
                what: name.to_owned(),
                fault: "there is no version before this one to go back to".to_owned(),
            });
        }
        if !place.exists() {
            return std::fs::rename(&previous, &place).map_err(PullError::io(&place, "put in place"));
        }
        if exchange(&previous, &place).is_err() {
            let aside = self.partial().join(format!("{name}.switch"));
            std::fs::rename(&place, &aside).map_err(PullError::io(&place, "moved"))?;
            std::fs::rename(&previous, &place).map_err(PullError::io(&previous, "moved"))?;
            std::fs::rename(&aside, &previous).map_err(PullError::io(&aside, "moved"))?;
        }
        sync_folder(&self.folder);
        Ok(())
    }

    pub(crate) fn place(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    pub(crate) fn previous(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{name}{PREVIOUS}"))
    }

    fn partial(&self) -> PathBuf {
        self.folder.join(".partial")
    }

    /// Keeps other processes from working on `name`, and mends what one that was killed left in between.
    pub(crate) fn lock(&self, name: &str) -> Result<Lock, PullError> {
        check_name(name)?;
        let partial = self.partial();
        std::fs::create_dir_all(&partial).map_err(PullError::io(&partial, "made"))?;
        let path = partial.join(format!("{name}.lock"));
        let file = File::create(&path).map_err(PullError::io(&path, "written"))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(PullError::Refusal {
                    what: name.to_owned(),
                    fault: "another phi-edge is at work on it; wait for its end".to_owned(),
                });
            }
            Err(TryLockError::Error(source)) => return Err(PullError::io(&path, "locked")(source)),
        }
        // Killed within a switch: whichever version this is, the complete other one is in place.
        let switch = partial.join(format!("{name}.switch"));
        if switch.exists() {
            if self.place(name).exists() {
                self.discard(name, &self.previous(name))?;
                std::fs::rename(&switch, self.previous(name)).map_err(PullError::io(&switch, "moved"))?;
            } else {
                std::fs::rename(&switch, self.place(name)).map_err(PullError::io(&switch, "moved"))?;
            }
        }
        Ok(Lock { _file: file })
    }

    /// The folder for what arrives of a version. What arrived of others can't be gone on with any more.
    pub(crate) fn staging(&self, name: &str, version: &str) -> Result<PathBuf, PullError> {
        let staging = self.partial().join(format!("{name}@{version}"));
        self.clear_staging(name, Some(&staging))?;
        std::fs::create_dir_all(&staging).map_err(PullError::io(&staging, "made"))?;
        Ok(staging)
    }

    fn clear_staging(&self, name: &str, but: Option<&Path>) -> Result<(), PullError> {
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

    fn has_remains(&self, name: &str) -> bool {
        self.previous(name).exists() || !self.stagings(name).is_empty()
    }

    /// Links files that the present version, or the one before it, has with the wanted content, so that they need not
    /// be fetched. Nothing is believed: the pull hashes them as it does what it fetched.
    pub(crate) fn reuse(&self, name: &str, staging: &Path, files: &[Wanted]) {
        for place in [self.place(name), self.previous(name)] {
            let known = Manifest::read(&place.join(MANIFEST)).unwrap_or_default();
            for file in files {
                let target = staging.join(&file.path);
                let same = known
                    .files
                    .iter()
                    .find(|(_, record)| record.size == file.size && file.names_sha256(&record.sha256));
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

    /// Puts a complete version in place of the present one, which is kept as the previous. At no time is there no
    /// version, where the file system can exchange two names.
    pub(crate) fn install(&self, name: &str, staging: &Path) -> Result<PathBuf, PullError> {
        let place = self.place(name);
        sync_folder(staging);
        if place.exists() {
            let (switch, previous) = (self.partial().join(format!("{name}.switch")), self.previous(name));
            std::fs::rename(staging, &switch).map_err(PullError::io(staging, "moved"))?;
            self.discard(name, &previous)?;
            if exchange(&switch, &place).is_ok() {
                sync_folder(&self.folder);
                std::fs::rename(&switch, &previous).map_err(PullError::io(&switch, "moved"))?;
            } else {
                std::fs::rename(&place, &previous).map_err(PullError::io(&place, "moved"))?;
                std::fs::rename(&switch, &place).map_err(PullError::io(&place, "put in place"))?;
            }
        } else {
            std::fs::rename(staging, &place).map_err(PullError::io(&place, "put in place"))?;
        }
        sync_folder(&self.folder);
        self.clear_staging(name, None)?;
        Ok(place)
    }

    /// The bytes that are free.
    fn free(&self) -> Result<Option<u64>, PullError> {
        (self.free)(&self.folder).map_err(PullError::io(&self.folder, "measured"))
    }

    /// Refuses what would not fit. The version before the present one goes where it must.
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

    /// Removes a folder so that it is gone at once, not file by file.
    fn discard(&self, name: &str, path: &Path) -> Result<(), PullError> {
        let trash = self.partial().join(format!("{name}.trash"));
        // What a process that was killed here has left goes first.
        empty(&trash)?;
        if path.symlink_metadata().is_ok() {
            std::fs::rename(path, &trash).map_err(PullError::io(path, "removed"))?;
            empty(&trash)?;
        }
        Ok(())
    }
}

/// Removes a folder, a file or a link, if it is there.
fn empty(path: &Path) -> Result<(), PullError> {
    let removed = match path.symlink_metadata() {
        Ok(metadata) if metadata.is_dir() => std::fs::remove_dir_all(path),
        Ok(_) => std::fs::remove_file(path),
        Err(_) => Ok(()),
    };
    removed.map_err(PullError::io(path, "removed"))
}

/// Names become folders, on any system, and must not be taken for what else is on the shelf.
pub(crate) fn check_name(name: &str) -> Result<(), PullError> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    let good = (1..=64).contains(&name.len()) && name.bytes().all(plain) && !name.starts_with('.');
    if good && !name.ends_with(PREVIOUS) && !name.ends_with('.') {
        return Ok(());
    }
    Err(PullError::Usage {
        given: name.to_owned(),
        fault: "is no name of a model: 1 to 64 of A-Z a-z 0-9 . _ -, not beginning with a dot, not ending in .previous; \
                choose one with --name"
            .to_owned(),
    })
}

/// Writes all of `from` to a new file at `path`, down to the disk, and gives its hashes. `size` is what is expected:
/// more is not written. `at` is told how far it is.
fn write_hashed(from: &mut impl Read, path: &Path, size: u64, at: impl Fn(u64)) -> Result<Seen, PullError> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(PullError::io(folder, "made"))?;
    }
    let mut file = File::create(path).map_err(PullError::io(path, "written"))?;
    let mut hasher = Hasher::new(size);
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::sync::Mutex;

    use super::*;

    /// No room, until the version before is gone.
    #[expect(
        clippy::unnecessary_wraps,
        reason = "it stands in for a function that can fail"
    )]
    fn crowded(folder: &Path) -> std::io::Result<Option<u64>> {
        Ok(Some(if folder.join("m.previous").exists() {
            0
        } else {
            1 << 40
        }))
    }

    #[test]
    fn the_version_before_gives_way_to_an_import_and_to_a_folder() {
        let folder = tempfile::tempdir().unwrap();
        let source = folder.path().join("source");
        std::fs::create_dir(&source).unwrap();
        std::fs::write(source.join("genai_config.json"), "{}").unwrap();
        let archive = folder.path().join("m.tar");
        Shelf::export(&source, &archive, &|_| {}).unwrap();
        let shelf = Shelf::new(folder.path().join("models")).with_free_space(crowded);
        let dropped = Mutex::new(0);
        let watch = |event: &Event<'_>| {
            if matches!(event, Event::Dropped { name: "m" }) {
                *dropped.lock().unwrap() += 1;
            }
        };
        let previous = shelf.previous("m");
        std::fs::create_dir_all(&previous).unwrap();
        shelf.take_in(&source, "m", &watch).unwrap();
        assert_eq!(*dropped.lock().unwrap(), 1);
        assert!(!previous.exists());
        std::fs::create_dir_all(&previous).unwrap();
        shelf.import(&archive, Some("m"), &watch).unwrap();
        assert_eq!(*dropped.lock().unwrap(), 2);
        // What is to be taken in must not give way to itself.
        let error = shelf.take_in(&previous, "m", &watch).unwrap_err();
        assert!(error.to_string().contains("models rollback m"), "{error}");
        assert!(previous.join("genai_config.json").exists());
    }
}
