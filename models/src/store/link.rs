//! The model link, which the configuration's `model.path` names: it points to the model in use.

use std::path::{Path, PathBuf};

use super::ModelStore;
use super::system::sync_folder;
use crate::pull_error::PullError;

const FORMER_FILE: &str = ".former";

/// The link to the model in use.
#[derive(Debug, Clone)]
pub struct ModelLink {
    path: PathBuf,
}

impl ModelLink {
    /// The link at `path`, which need not exist yet.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// The link's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether it points to `directory`.
    pub fn points_to(&self, directory: &Path) -> bool {
        match (self.path.canonicalize(), directory.canonicalize()) {
            (Ok(used), Ok(directory)) => used == directory,
            _ => false,
        }
    }

    /// Points it to a model of the store, in one step, and keeps where it pointed before. Running daemons keep their
    /// model until they restart.
    pub fn point_to(&self, store: &ModelStore, name: &str) -> Result<(), PullError> {
        let place = store.find(name)?;
        if self.points_to(&place) {
            return Ok(());
        }
        self.switch(store, &self.towards(&place))
    }

    /// Points it to where it pointed before; a second time undoes that. Returns the directory.
    pub fn back(&self, store: &ModelStore) -> Result<PathBuf, PullError> {
        let refusal = |fault: &str| PullError::Refusal {
            what: self.path.display().to_string(),
            fault: fault.to_owned(),
        };
        let former = std::fs::read_to_string(store.folder().join(FORMER_FILE))
            .map_err(|_| refusal("no model was in use before this one"))?;
        let target = PathBuf::from(former.trim_end_matches('\n'));
        let directory = self.folder().join(&target);
        if !directory.is_dir() {
            return Err(refusal(&format!(
                "the model that was in use before ({}) is gone",
                directory.display()
            )));
        }
        self.switch(store, &target)?;
        Ok(directory)
    }

    fn folder(&self) -> &Path {
        self.path
            .parent()
            .filter(|parent| !parent.as_os_str().is_empty())
            .unwrap_or(Path::new("."))
    }

    /// Relative where link and store stand together, so that both may move.
    fn towards(&self, place: &Path) -> PathBuf {
        let full = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.to_path_buf());
        let (folder, place) = (full(self.folder()), full(place));
        place
            .strip_prefix(&folder)
            .map(Path::to_path_buf)
            .unwrap_or(place)
    }

    fn switch(&self, store: &ModelStore, target: &Path) -> Result<(), PullError> {
        let present = std::fs::read_link(&self.path).ok();
        if present.is_none() && self.path.exists() {
            return Err(PullError::Refusal {
                what: self.path.display().to_string(),
                fault: format!(
                    "is a folder and no link, so that it can't be switched; move it to {} first, or set model.path to a \
                     path beside that folder",
                    store.folder().join("NAME").display()
                ),
            });
        }
        let folder = self.folder();
        std::fs::create_dir_all(folder).map_err(PullError::io(folder, "made"))?;
        let mut fresh = self.path.file_name().unwrap_or_default().to_os_string();
        fresh.push(".new");
        let fresh = self.path.with_file_name(fresh);
        let _ = remove(&fresh);
        link(target, &fresh).map_err(PullError::io(&fresh, "made as a link"))?;
        if let Some(present) = present {
            let former = store.folder().join(FORMER_FILE);
            std::fs::write(&former, format!("{}\n", present.display()))
                .map_err(PullError::io(&former, "written"))?;
        }
        replace(&fresh, &self.path).map_err(PullError::io(&self.path, "switched"))?;
        sync_folder(folder);
        Ok(())
    }
}

#[cfg(unix)]
fn remove(link: &Path) -> std::io::Result<()> {
    std::fs::remove_file(link)
}

/// Renames the link `fresh` to `link`, in one step.
#[cfg(unix)]
fn replace(fresh: &Path, link: &Path) -> std::io::Result<()> {
    std::fs::rename(fresh, link)
}

#[cfg(windows)]
fn remove(link: &Path) -> std::io::Result<()> {
    std::fs::remove_dir(link)
}

/// Renames the link `fresh` to `link`. Windows does not rename to a folder that is there, and a link to a folder is one: an
/// interruption between the two steps leaves no link.
#[cfg(windows)]
fn replace(fresh: &Path, link: &Path) -> std::io::Result<()> {
    if std::fs::symlink_metadata(link).is_ok() {
        remove(link)?;
    }
    std::fs::rename(fresh, link)
}

#[cfg(unix)]
fn link(target: &Path, link: &Path) -> std::io::Result<()> {
    std::os::unix::fs::symlink(target, link)
}

#[cfg(windows)]
fn link(target: &Path, link: &Path) -> std::io::Result<()> {
    std::os::windows::fs::symlink_dir(target, link)
}
