//! Errors of fetching, importing and changing models: one line each, what to do last.

use std::path::{Path, PathBuf};

use crate::error::ModelError;

/// An error of fetching models or of the model store.
#[derive(Debug, thiserror::Error)]
pub enum PullError {
    /// What was asked for makes no sense.
    #[error("{given}: {fault}")]
    Usage {
        /// As it was given.
        given: String,
        /// What is wrong.
        fault: String,
    },
    /// The hub needs a token, or refuses this one.
    #[error(
        "{what}: the hub refuses access (HTTP {status}). It does not exist, or its licence must be accepted on the \
         hub's page first; then pass a token of that account in HF_TOKEN or with --token-file"
    )]
    Refused {
        /// What was asked for.
        what: String,
        /// The hub's answer.
        status: u16,
    },
    /// The hub does not have it.
    #[error(
        "{what}: the hub has no such thing (HTTP {status}); check the spelling, the revision and the folder"
    )]
    NotFound {
        /// What was asked for.
        what: String,
        /// The hub's answer.
        status: u16,
    },
    /// All attempts failed without progress.
    #[error(
        "{what}: given up after {tries} tries without progress: {why}. What has arrived is kept; the same command goes \
         on from there"
    )]
    GivenUp {
        /// What was asked for.
        what: String,
        /// How often.
        tries: u32,
        /// The last fault.
        why: String,
    },
    /// The hub's answer is not what the protocol says.
    #[error("{what}: the hub's answer can't be understood: {fault}")]
    Protocol {
        /// What was asked for.
        what: String,
        /// What is wrong with it.
        fault: String,
    },
    /// The repository has no folder that can be taken, or several.
    #[error("{repository}: {fault}")]
    NoModel {
        /// The repository.
        repository: String,
        /// What is wrong, and the folders there are.
        fault: String,
    },
    /// A file's content is not what it must be, twice.
    #[error(
        "{file}: wrong content, expected {expected}, found {found}; nothing was switched. Try again later or another \
         --mirror"
    )]
    WrongContent {
        /// The file.
        file: String,
        /// The hash or size that it must have.
        expected: String,
        /// The hash or size that it has.
        found: String,
    },
    /// There is not enough room on the disk.
    #[error(
        "{}: {needed} more are needed and {free} are free; remove a model (phi-edge models remove NAME) or choose \
         another folder (--dir)",
        folder.display()
    )]
    Space {
        /// The folder.
        folder: PathBuf,
        /// What is needed beyond what is there already.
        needed: Size,
        /// What there is.
        free: Size,
    },
    /// The file system refuses.
    #[error("{}: can't be {doing}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What was tried: "read", "written", …
        doing: &'static str,
        /// Why not.
        source: std::io::Error,
    },
    /// A model directory is bad.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// Files of a model differ from its manifest.
    #[error("{model}: {} differ from the manifest: {}", count(faults.len()), faults.join("; "))]
    Damaged {
        /// The model.
        model: String,
        /// One line a file.
        faults: Vec<String>,
    },
    /// There is no such model in the folder.
    #[error("{name}: there is no such model in {}; phi-edge models list names those that are there", folder.display())]
    NoSuchModel {
        /// The name.
        name: String,
        /// The folder of the models.
        folder: PathBuf,
    },
    /// The state of the folder does not allow it.
    #[error("{what}: {fault}")]
    Refusal {
        /// The model, link or file.
        what: String,
        /// Why, and what to do.
        fault: String,
    },
    /// An archive can't be taken in.
    #[error("{}: {fault}; nothing was taken in", path.display())]
    Archive {
        /// The archive.
        path: PathBuf,
        /// What is wrong with it.
        fault: String,
    },
}

impl PullError {
    pub(crate) fn io(path: &Path, doing: &'static str) -> impl FnOnce(std::io::Error) -> Self + use<> {
        let path = path.to_path_buf();
        move |source| Self::Io { path, doing, source }
    }
}

fn count(files: usize) -> String {
    if files == 1 {
        "1 file".to_owned()
    } else {
        format!("{files} files")
    }
}

/// A number of bytes, for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size(pub u64);

impl std::fmt::Display for Size {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Tenths, by whole numbers: a float could round 2^64 wrongly, and needs a cast.
        for (unit, bytes) in [("GB", 1_000_000_000_u64), ("MB", 1_000_000), ("kB", 1_000)] {
            if self.0 >= bytes {
                let tenths = self.0 / (bytes / 10);
                return write!(f, "{}.{} {unit}", tenths / 10, tenths % 10);
            }
        }
        write!(f, "{} bytes", self.0)
    }
}
