//! Comparison of a model directory with its manifest.

use std::collections::BTreeSet;
use std::path::Path;

use crate::digest::FileHasher;
use crate::manifest::{MANIFEST, Manifest};
use crate::pull_error::PullError;

/// A difference between a file and the manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FileFault {
    /// The manifest names it, and it is not there.
    Missing(String),
    /// It is not what the manifest says.
    Wrong {
        /// Its path in the directory.
        path: String,
        /// What the manifest says.
        expected: String,
        /// What it is.
        found: String,
    },
    /// It is there, and the manifest does not name it.
    Extra(String),
}

impl FileFault {
    /// Whether a file of the model is not right; additional ones leave it whole.
    pub fn spoils(&self) -> bool {
        !matches!(self, Self::Extra(_))
    }
}

impl std::fmt::Display for FileFault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Missing(path) => write!(f, "{path} is missing"),
            Self::Wrong {
                path,
                expected,
                found,
            } => write!(f, "{path} is wrong: expected {expected}, found {found}"),
            Self::Extra(path) => write!(f, "{path} does not belong to the model"),
        }
    }
}

/// Compares every file of `directory` with `manifest`.
pub(crate) fn compare(directory: &Path, manifest: &Manifest) -> Result<Vec<FileFault>, PullError> {
    let mut extra: BTreeSet<String> = walk(directory)?.into_iter().collect();
    extra.remove(MANIFEST);
    let mut faults = Vec::new();
    for (path, record) in &manifest.files {
        extra.remove(path);
        let full = directory.join(path);
        let Ok(metadata) = full.metadata() else {
            faults.push(FileFault::Missing(path.clone()));
            continue;
        };
        let wrong = |expected: String, found: String| FileFault::Wrong {
            path: path.clone(),
            expected,
            found,
        };
        if metadata.len() != record.size {
            faults.push(wrong(
                format!("{} bytes", record.size),
                format!("{} bytes", metadata.len()),
            ));
            continue;
        }
        let seen = FileHasher::of_file(&full).map_err(PullError::io(&full, "read"))?;
        if seen.sha256 != record.sha256 {
            faults.push(wrong(
                format!("sha256 {}", record.sha256),
                format!("sha256 {}", seen.sha256),
            ));
        }
    }
    faults.extend(extra.into_iter().map(FileFault::Extra));
    Ok(faults)
}

/// Removes files that the manifest does not name: leftovers of files that were linked after all.
pub(crate) fn sweep(directory: &Path, manifest: &Manifest) -> Result<(), PullError> {
    for path in walk(directory)? {
        if path != MANIFEST && !manifest.files.contains_key(&path) {
            let full = directory.join(&path);
            std::fs::remove_file(&full).map_err(PullError::io(&full, "removed"))?;
        }
    }
    Ok(())
}

/// The paths, with `/`, of all files below `directory`, in order. Links to folders are not followed: they may lead in
/// a circle.
pub(crate) fn walk(directory: &Path) -> Result<Vec<String>, PullError> {
    let mut files = Vec::new();
    let mut open = vec![(directory.to_path_buf(), String::new())];
    while let Some((folder, prefix)) = open.pop() {
        for item in std::fs::read_dir(&folder).map_err(PullError::io(&folder, "read"))? {
            let item = item.map_err(PullError::io(&folder, "read"))?;
            let name = format!("{prefix}{}", item.file_name().to_string_lossy());
            let kind = item.file_type().map_err(PullError::io(&item.path(), "read"))?;
            if kind.is_dir() {
                open.push((item.path(), format!("{name}/")));
            } else {
                files.push(name);
            }
        }
    }
    files.sort();
    Ok(files)
}
