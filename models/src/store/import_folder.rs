//! Import of a model from a folder of this machine.

use std::fs::File;
use std::path::{Path, PathBuf};

use super::ModelStore;
use super::compare::walk;
use super::staging::write_hashed;
use crate::error::ModelError;
use crate::manifest::{FileRecord, MANIFEST, Manifest};
use crate::progress::{Event, Watch};
use crate::pull_error::PullError;
use crate::safe_path::is_safe;

impl ModelStore {
    /// Copies the model in `folder` to the store as `name`. Files are compared with the hashes of its manifest;
    /// without any, the files' own are noted.
    pub fn import_folder(&self, folder: &Path, name: &str, watch: Watch<'_>) -> Result<PathBuf, PullError> {
        let config = folder.join("genai_config.json");
        if !config.is_file() {
            return Err(ModelError::Missing {
                path: config,
                needed_for: "every exported model has it",
            }
            .into());
        }
        let _lock = self.lock(name)?;
        let place = self.place(name);
        if place.canonicalize().ok() == folder.canonicalize().ok() {
            return Err(PullError::Refusal {
                what: name.to_owned(),
                fault: "is this very folder; nothing is to be taken in".to_owned(),
            });
        }
        if self
            .previous(name)
            .canonicalize()
            .is_ok_and(|previous| folder.canonicalize().is_ok_and(|folder| folder == previous))
        {
            return Err(PullError::Refusal {
                what: name.to_owned(),
                fault: format!(
                    "has this very folder as the version before; `phi-edge models rollback {name}` goes back to it"
                ),
            });
        }
        let mut manifest = Manifest::read(&folder.join(MANIFEST))?;
        let files = contents(folder)?;
        let size = |file: &String| folder.join(file).metadata().map_or(0, |metadata| metadata.len());
        self.make_room(name, files.iter().map(size).sum(), watch)?;
        let staging = self.fresh_staging(name, "folder")?;
        let mut faults = Vec::new();
        let mut seen = std::collections::BTreeMap::new();
        for path in &files {
            let from = folder.join(path);
            watch(&Event::Begun {
                file: path,
                size: size(path),
                have: 0,
            });
            let mut source = File::open(&from).map_err(PullError::io(&from, "read"))?;
            let found = write_hashed(&mut source, &staging.join(path), size(path), |bytes| {
                watch(&Event::At { file: path, bytes });
            })?;
            watch(&Event::Done { file: path });
            seen.insert(path.clone(), FileRecord::from(found));
        }
        for (path, record) in &manifest.files {
            match seen.get(path) {
                Some(found) if found == record => {}
                Some(found) => faults.push(format!(
                    "{path}: expected {}, found {}",
                    record.sha256, found.sha256
                )),
                None => faults.push(format!("{path} is missing")),
            }
        }
        if !faults.is_empty() {
            self.discard(name, &staging)?;
            let model = folder.display().to_string();
            return Err(PullError::Damaged { model, faults });
        }
        manifest.files = seen;
        manifest.name = Some(name.to_owned());
        manifest.write(&staging.join(MANIFEST))?;
        self.install(name, &staging)
    }
}

/// The files of a model directory, without the manifest and without hidden ones.
pub(super) fn contents(folder: &Path) -> Result<Vec<String>, PullError> {
    let mut files = walk(folder)?;
    files.retain(|path| path != MANIFEST && !path.split('/').any(|part| part.starts_with('.')));
    match files.iter().find(|path| !is_safe(path)) {
        Some(path) => Err(ModelError::invalid(
            &folder.join(path),
            "has a name that can't be kept on every system",
        )
        .into()),
        None => Ok(files),
    }
}
