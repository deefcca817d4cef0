//! A file of a repository that a model needs.

use crate::digest::Expected;

/// A file that is wanted.
#[derive(Debug, Clone)]
pub(crate) struct Wanted {
    /// Where it stands in the repository.
    pub(crate) remote: String,
    /// Where it stands in the model directory.
    pub(crate) path: String,
    pub(crate) size: u64,
    /// All hashes that it must have: the hub's, and the manifest's from an earlier pull.
    pub(crate) expected: Vec<Expected>,
}

impl Wanted {
    /// Whether `sha256` is what the file must hash to.
    pub(crate) fn names_sha256(&self, sha256: &str) -> bool {
        self.expected
            .iter()
            .any(|one| matches!(one, Expected::Sha256(hash) if hash == sha256))
    }
}
