//! Graph files, read whole to be edited.

use std::path::Path;

use prost::bytes::Bytes;

use crate::error::OnnxError;

/// The largest graph that is edited. Graphs that hold their weights themselves are larger; a copy in memory would
/// cost more than the edit gains.
pub(crate) const MAX_EDITED_BYTES: u64 = 256 << 20;

/// A graph whose weights lie beside it.
pub(crate) fn read_graph(path: &Path) -> Result<Bytes, OnnxError> {
    let fault = |fault: String| OnnxError::Model {
        path: path.to_path_buf(),
        fault,
    };
    let unreadable = |error: std::io::Error| fault(format!("can't be read: {error}"));
    if std::fs::metadata(path).map_err(unreadable)?.len() > MAX_EDITED_BYTES {
        return Err(fault(
            "holds its weights itself: export the model with weights in a file beside the graph".into(),
        ));
    }
    Ok(std::fs::read(path).map_err(unreadable)?.into())
}

/// The folder of a file.
pub(crate) fn folder_of(path: &Path) -> &Path {
    path.parent().unwrap_or(Path::new("."))
}
