//! Errors of a model directory: one line each, the file first.

use std::path::{Path, PathBuf};

/// An error of a model directory or of a prompt for it.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// There is no such directory.
    #[error("{}: no such model directory; set model.path (or --model) to a folder that holds genai_config.json", .0.display())]
    NoDirectory(PathBuf),
    /// A file that belongs to it is not there.
    #[error("{}: the file is missing; {needed_for}. Export or copy the model again", .path.display())]
    Missing {
        /// The file.
        path: PathBuf,
        /// What it is needed for.
        needed_for: &'static str,
    },
    /// A file can't be read.
    #[error("{}: can't be read", .path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file is there and wrong.
    #[error("{}: {fault}", .path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        fault: String,
    },
    /// The chat template refuses the conversation.
    #[error("the model's chat template refuses this conversation: {0}")]
    Template(String),
    /// The tokenizer refuses the text.
    #[error("the model's tokenizer can't encode this text: {0}")]
    Encode(String),
}

impl ModelError {
    pub(crate) fn invalid(path: &Path, fault: impl Into<String>) -> Self {
        Self::Invalid {
            path: path.to_path_buf(),
            fault: fault.into(),
        }
    }
}

/// Reads a file; `needed_for` says what it is for.
pub(crate) fn read(path: &Path, needed_for: &'static str) -> Result<Vec<u8>, ModelError> {
    std::fs::read(path).map_err(|source| match source.kind() {
        std::io::ErrorKind::NotFound => ModelError::Missing {
            path: path.to_path_buf(),
            needed_for,
        },
        _ => ModelError::Unreadable {
            path: path.to_path_buf(),
            source,
        },
    })
}

/// Reads a file of JSON.
pub(crate) fn read_json(path: &Path, needed_for: &'static str) -> Result<serde_json::Value, ModelError> {
    serde_json::from_slice(&read(path, needed_for)?)
        .map_err(|error| ModelError::invalid(path, format!("is no JSON: {error}; copy or export it again")))
}
