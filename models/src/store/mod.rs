//! The model store: one folder for each model, installed whole, the version before it kept.
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
mod import_folder;
mod link;
mod staging;
mod switch;
mod system;

use std::path::{Path, PathBuf};

pub use compare::FileFault;
pub(crate) use compare::{compare, sweep};
pub use link::ModelLink;

use system::free_space;

use crate::error::ModelError;
use crate::manifest::{MANIFEST, Manifest};
use crate::pull_error::PullError;

const PREVIOUS_SUFFIX: &str = ".previous";

/// Returns the free bytes of a folder's file system; `None` where that is unknown.
pub type FreeSpace = fn(&Path) -> std::io::Result<Option<u64>>;

/// The folder of models.
#[derive(Debug, Clone)]
pub struct ModelStore {
    folder: PathBuf,
    free: FreeSpace,
}

/// A model in the store.
#[derive(Debug, Clone)]
pub struct StoredModel {
    /// Its name: that of its folder.
    pub name: String,
    /// Its folder.
    pub path: PathBuf,
    /// Its manifest.
    pub manifest: Manifest,
    /// The bytes of its files.
    pub bytes: u64,
    /// Whether the version before it is kept.
    pub has_previous: bool,
}

impl ModelStore {
    /// The models in `folder`, which need not exist yet.
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        Self {
            folder: folder.into(),
            free: free_space,
        }
    }

    /// The store with another measure of free space, for tests.
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
    pub fn entries(&self) -> Result<Vec<StoredModel>, PullError> {
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
            entries.push(StoredModel {
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

    /// Compares every file of a model directory with its manifest: wrong, missing and additional ones.
    pub fn verify(directory: &Path) -> Result<Vec<FileFault>, PullError> {
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

    /// Removes a model, its previous version and its partial files; not the one that `link` points to.
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

    pub(crate) fn place(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    pub(crate) fn previous(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{name}{PREVIOUS_SUFFIX}"))
    }

    fn partial(&self) -> PathBuf {
        self.folder.join(".partial")
    }
}

/// Validates a name: names become folders, on any system, and must not clash with other names in the store.
pub(crate) fn check_name(name: &str) -> Result<(), PullError> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    let good = (1..=64).contains(&name.len()) && name.bytes().all(plain) && !name.starts_with('.');
    if good && !name.ends_with(PREVIOUS_SUFFIX) && !name.ends_with('.') {
        return Ok(());
    }
    Err(PullError::Usage {
        given: name.to_owned(),
        fault: "is no name of a model: 1 to 64 of A-Z a-z 0-9 . _ -, not beginning with a dot, not ending in .previous; \
                choose one with --name"
            .to_owned(),
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::sync::Mutex;

    use super::*;
    use crate::progress::Event;

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
        ModelStore::export(&source, &archive, &|_| {}).unwrap();
        let store = ModelStore::new(folder.path().join("models")).with_free_space(crowded);
        let dropped = Mutex::new(0);
        let watch = |event: &Event<'_>| {
            if matches!(event, Event::Dropped { name: "m" }) {
                *dropped.lock().unwrap() += 1;
            }
        };
        let previous = store.previous("m");
        std::fs::create_dir_all(&previous).unwrap();
        store.import_folder(&source, "m", &watch).unwrap();
        assert_eq!(*dropped.lock().unwrap(), 1);
        assert!(!previous.exists());
        std::fs::create_dir_all(&previous).unwrap();
        store.import_archive(&archive, Some("m"), &watch).unwrap();
        assert_eq!(*dropped.lock().unwrap(), 2);
        // What is to be taken in must not give way to itself.
        let error = store.import_folder(&previous, "m", &watch).unwrap_err();
        assert!(error.to_string().contains("models rollback m"), "{error}");
        assert!(previous.join("genai_config.json").exists());
    }
}
