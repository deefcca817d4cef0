//! The model that the daemon serves: the folder that `model.path` resolved to at the start.
//!
//! Tokenizer, chat template, name and digest are those of that folder. A graph that is loaded again
//! (`runtime.unload_after`) from another folder would not match them.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::SystemTime;

use phi_edge_models::ModelDir;

use crate::exit::Fault;

/// The message with which the process ends, so that systemd restarts it.
const REPLACED_MESSAGE: &str = "the model directory was replaced; restarting to load the new one";

/// A model directory, and the identity of its folder.
#[derive(Debug, Clone)]
pub(crate) struct ServedModel {
    model: ModelDir,
    identity: FolderIdentity,
    replaced: Arc<AtomicBool>,
}

impl ServedModel {
    /// Opens the folder that `path` resolves to now: links may point elsewhere later.
    pub(crate) fn open(path: &Path) -> Result<Self, Fault> {
        // A path that leads nowhere is named as it was given.
        let folder = path.canonicalize().unwrap_or_else(|_| path.to_path_buf());
        let model = ModelDir::open(&folder)?;
        let identity = FolderIdentity::of(&folder)
            .map_err(|error| Fault::failed(format!("{}: can't be read: {error}", folder.display())))?;
        Ok(Self {
            model,
            identity,
            replaced: Arc::default(),
        })
    }

    pub(crate) fn model(&self) -> &ModelDir {
        &self.model
    }

    /// Fails if the folder was removed or replaced, which [`ServedModel::is_replaced`] reports from then on.
    pub(crate) fn verify_unchanged(&self) -> Result<(), Fault> {
        if FolderIdentity::of(self.model.path()).is_ok_and(|identity| identity == self.identity) {
            return Ok(());
        }
        self.replaced.store(true, Ordering::Relaxed);
        Err(replaced())
    }

    /// Whether the model could not be loaded because its folder was replaced.
    pub(crate) fn is_replaced(&self) -> bool {
        self.replaced.load(Ordering::Relaxed)
    }
}

/// The fault of a daemon whose model was replaced.
pub(crate) fn replaced() -> Fault {
    Fault::failed(REPLACED_MESSAGE)
}

/// The identity of a folder, which differs from that of a later one of the same name. The time is part of it since
/// inodes are reused.
#[derive(Debug, Clone, PartialEq, Eq)]
struct FolderIdentity {
    #[cfg(unix)]
    inode: (u64, u64),
    modified: Option<SystemTime>,
}

impl FolderIdentity {
    fn of(folder: &Path) -> std::io::Result<Self> {
        let metadata = folder.metadata()?;
        Ok(Self {
            #[cfg(unix)]
            inode: {
                use std::os::unix::fs::MetadataExt as _;
                (metadata.dev(), metadata.ino())
            },
            modified: metadata.modified().ok(),
        })
    }
}

#[cfg(all(test, unix))]
mod tests {
    use std::path::PathBuf;

    use super::*;

    fn model(folder: &Path, name: &str) -> PathBuf {
        let path = folder.join(name);
        let config = r#"{"model":{"context_length":8,"vocab_size":8,"decoder":{"filename":"m.onnx","head_size":8,
            "num_attention_heads":1,"num_hidden_layers":1}}}"#;
        std::fs::create_dir(&path).expect("a folder");
        std::fs::write(path.join("genai_config.json"), config).expect("a file");
        std::fs::write(path.join("m.onnx"), "x").expect("a file");
        path
    }

    #[test]
    fn a_link_that_leads_elsewhere_changes_nothing() {
        let folder = tempfile::tempdir().expect("a folder");
        let (one, two) = (model(folder.path(), "one"), model(folder.path(), "two"));
        let link = folder.path().join("model");
        std::os::unix::fs::symlink(&one, &link).expect("a link");
        let served = ServedModel::open(&link).expect("a model");
        std::fs::remove_file(&link).expect("a link");
        std::os::unix::fs::symlink(&two, &link).expect("a link");
        assert_eq!(served.model().path(), one.canonicalize().expect("a folder"));
        assert!(served.verify_unchanged().is_ok() && !served.is_replaced());
    }

    #[test]
    fn another_folder_in_its_place_is_noticed() {
        let folder = tempfile::tempdir().expect("a folder");
        let one = model(folder.path(), "one");
        let served = ServedModel::open(&one).expect("a model");
        std::fs::rename(&one, folder.path().join("one.previous")).expect("a folder");
        assert_eq!(
            served.verify_unchanged().expect_err("it is gone").message,
            "the model directory was replaced; restarting to load the new one"
        );
        let served = ServedModel::open(&folder.path().join("one.previous")).expect("a model");
        std::fs::rename(served.model().path(), &one).expect("a folder");
        std::fs::rename(model(folder.path(), "new"), served.model().path()).expect("a folder");
        assert!(served.verify_unchanged().is_err() && served.is_replaced());
    }
}
