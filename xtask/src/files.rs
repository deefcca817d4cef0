//! Copies of files and folders, with errors that name them.

use std::path::Path;

use anyhow::{Context, Result};

/// Copies a file; the folder of `to` is made.
pub(crate) fn copy_file(from: &Path, to: &Path) -> Result<()> {
    if let Some(folder) = to.parent() {
        std::fs::create_dir_all(folder).with_context(|| format!("{} can't be made", folder.display()))?;
    }
    std::fs::copy(from, to)
        .with_context(|| format!("{} can't be copied to {}", from.display(), to.display()))?;
    Ok(())
}

/// Copies the files of a folder whose names `is_wanted` takes, and its folders.
pub(crate) fn copy_folder(from: &Path, to: &Path, is_wanted: impl Fn(&str) -> bool + Copy) -> Result<()> {
    let entries = std::fs::read_dir(from).with_context(|| format!("{} can't be read", from.display()))?;
    for entry in entries {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy_folder(&entry.path(), &target, is_wanted)?;
        } else if is_wanted(&entry.file_name().to_string_lossy()) {
            copy_file(&entry.path(), &target)?;
        }
    }
    Ok(())
}
