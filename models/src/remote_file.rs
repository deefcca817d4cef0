//! A file of a repository that a model needs.

use crate::digest::ExpectedHash;

/// A file that is wanted.
#[derive(Debug, Clone)]
pub(crate) struct RemoteFile {
    /// Where it stands in the repository.
    pub(crate) remote: String,
    /// Where it stands in the model directory.
    pub(crate) path: String,
    pub(crate) size: u64,
    /// All hashes that it must have: the hub's, and the manifest's from an earlier pull.
    pub(crate) expected: Vec<ExpectedHash>,
}

impl RemoteFile {
    /// Whether `sha256` is what the file must hash to.
    pub(crate) fn expects_sha256(&self, sha256: &str) -> bool {
        self.expected
            .iter()
            .any(|one| matches!(one, ExpectedHash::Sha256(hash) if hash == sha256))
    }
}
