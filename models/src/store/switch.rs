//! The switch of a model to another version: one process at a time, complete versions only.

use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};

use super::system::{exchange, sync_folder};
use super::{ModelStore, check_name};
use crate::pull_error::PullError;

/// The lock of a model; the system releases it when the process ends, however it does.
pub(crate) struct ModelLock {
    _file: File,
}

impl ModelStore {
    /// Exchanges a model and its previous version.
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

    /// Locks `name` against other processes, and completes a switch that a killed one left unfinished.
    pub(crate) fn lock(&self, name: &str) -> Result<ModelLock, PullError> {
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
        Ok(ModelLock { _file: file })
    }

    /// Installs a complete version in place of the present one, which is kept as the previous. Where the file system
    /// can exchange two names, there is a version at any time.
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

    /// Removes a folder so that it is gone at once, not file by file.
    pub(super) fn discard(&self, name: &str, path: &Path) -> Result<(), PullError> {
        let trash = self.partial().join(format!("{name}.trash"));
        // Leftovers of a process that was killed here go first.
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
