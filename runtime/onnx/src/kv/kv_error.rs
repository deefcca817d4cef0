//! Errors of the KV memory.

use phi_edge_engine::DecodeError;

/// The error of a change of rows.
#[derive(Debug)]
pub(crate) enum KvError {
    /// The memory for keys and values is not enough.
    OutOfMemory(String),
    /// The device has failed, or what a row held is lost.
    Failed(String),
}

impl From<KvError> for DecodeError {
    fn from(error: KvError) -> Self {
        match error {
            KvError::OutOfMemory(fault) => Self::OutOfMemory(fault),
            KvError::Failed(fault) => Self::Failed(fault),
        }
    }
}
