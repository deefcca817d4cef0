//! `manifest.json`: what a model directory of ours says about itself. Exported directories have none.

use std::path::Path;

use crate::error::{ModelError, read_json};

/// What the file says.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Manifest {
    /// A name for people, the status and the replies; else the directory's name serves.
    pub name: Option<String>,
    /// The model only shows how things work: its answers are not to be relied on.
    pub demonstration: bool,
    /// A sentence for whoever reads the log.
    pub note: Option<String>,
}

impl Manifest {
    /// Reads the file; a directory without one has the empty manifest.
    pub(crate) fn read(path: &Path) -> Result<Self, ModelError> {
        if !path.exists() {
            return Ok(Self::default());
        }
        let json = read_json(path, "it describes the model")?;
        let text = |key: &str| json[key].as_str().map(ToOwned::to_owned);
        Ok(Self {
            name: text("name"),
            demonstration: json["demonstration"].as_bool().unwrap_or(false),
            note: text("note"),
        })
    }
}
