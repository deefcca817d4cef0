//! File operations that differ between systems.

use std::fs::File;
use std::path::Path;

/// Syncs a folder, so that renames in it outlive a power cut, where the system can.
pub(super) fn sync_folder(folder: &Path) {
    if cfg!(unix) {
        let _ = File::open(folder).and_then(|folder| folder.sync_all());
    }
}

/// Exchanges the names of two folders in one step.
#[cfg(target_os = "linux")]
pub(super) fn exchange(one: &Path, other: &Path) -> std::io::Result<()> {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    Ok(renameat_with(CWD, one, CWD, other, RenameFlags::EXCHANGE)?)
}

#[cfg(not(target_os = "linux"))]
pub(super) fn exchange(_: &Path, _: &Path) -> std::io::Result<()> {
    Err(std::io::ErrorKind::Unsupported.into())
}

#[cfg(unix)]
pub(super) fn free_space(folder: &Path) -> std::io::Result<Option<u64>> {
    let existing = folder.ancestors().find(|path| path.is_dir()).unwrap_or(folder);
    let state = rustix::fs::statvfs(existing)?;
    Ok(Some(state.f_bavail.saturating_mul(state.f_frsize)))
}

/// The standard library does not provide it.
#[cfg(not(unix))]
pub(super) fn free_space(_: &Path) -> std::io::Result<Option<u64>> {
    Ok(None)
}
