//! A file of a repository that a model needs.

use crate::digest::ExpectedHash;

/// A file of a repository, with its place in the model directory.
#[derive(Debug, Clone)]
pub(crate) struct RemoteFile {
    /// Its path in the repository.
    pub(crate) remote: String,
    /// Its path in the model directory.
    pub(crate) path: String,
    pub(crate) size: u64,
    /// All hashes that it must have: the hub's, and the manifest's from an earlier pull.
    pub(crate) expected: Vec<ExpectedHash>,
}

impl RemoteFile {
    /// Whether `sha256` is one of the expected hashes.
    pub(crate) fn expects_sha256(&self, sha256: &str) -> bool {
        self.expected
            .iter()
            .any(|one| matches!(one, ExpectedHash::Sha256(hash) if hash == sha256))
    }
}
