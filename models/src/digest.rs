//! Hashes of files: expected and found.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use sha1::Sha1;
use sha2::{Digest, Sha256};

use crate::fingerprint::hex;

/// A hash that a file must have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ExpectedHash {
    /// SHA-256 of the content, as large-file storage and manifests name it.
    Sha256(String),
    /// The id of the git blob: SHA-1 over `blob {size}\0` and the content.
    GitBlob(String),
}

impl std::fmt::Display for ExpectedHash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Sha256(hash) => write!(f, "sha256 {hash}"),
            Self::GitBlob(hash) => write!(f, "git blob {hash}"),
        }
    }
}

/// The hashes that a file has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct FileHashes {
    pub(crate) sha256: String,
    pub(crate) blob: String,
    pub(crate) size: u64,
}

impl FileHashes {
    /// `Err` with what was expected and what was found.
    pub(crate) fn check(&self, size: u64, expected: &[ExpectedHash]) -> Result<(), (String, String)> {
        if self.size != size {
            return Err((format!("{size} bytes"), format!("{} bytes", self.size)));
        }
        for one in expected {
            let found = match one {
                ExpectedHash::Sha256(_) => ExpectedHash::Sha256(self.sha256.clone()),
                ExpectedHash::GitBlob(_) => ExpectedHash::GitBlob(self.blob.clone()),
            };
            if found != *one {
                return Err((one.to_string(), found.to_string()));
            }
        }
        Ok(())
    }
}

/// The hasher of a file, which computes both hashes as the bytes come. The size must be known from the start, since a
/// git blob begins with it.
#[derive(Clone)]
pub(crate) struct FileHasher {
    sha256: Sha256,
    blob: Sha1,
    size: u64,
}

impl FileHasher {
    pub(crate) fn new(size: u64) -> Self {
        Self {
            sha256: Sha256::new(),
            blob: Sha1::new_with_prefix(format!("blob {size}\0")),
            size: 0,
        }
    }

    pub(crate) fn update(&mut self, bytes: &[u8]) {
        self.sha256.update(bytes);
        self.blob.update(bytes);
        self.size += bytes.len() as u64;
    }

    /// Bytes so far.
    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    pub(crate) fn seen(&self) -> FileHashes {
        FileHashes {
            sha256: hex(&self.sha256.clone().finalize()),
            blob: hex(&self.blob.clone().finalize()),
            size: self.size,
        }
    }

    /// The hashes of a file as it is.
    pub(crate) fn of_file(path: &Path) -> std::io::Result<FileHashes> {
        let mut file = File::open(path)?;
        let mut hasher = Self::new(file.metadata()?.len());
        let mut buffer = vec![0; 1 << 18];
        loop {
            match file.read(&mut buffer)? {
                0 => return Ok(hasher.seen()),
                read => hasher.update(&buffer[..read]),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_are_those_of_git_and_sha256sum() {
        let mut hasher = FileHasher::new(6);
        hasher.update(b"hel");
        hasher.update(b"lo\n");
        let seen = hasher.seen();
        // `printf 'hello\n' | git hash-object --stdin`, and sha256sum.
        assert_eq!(seen.blob, "ce013625030ba8dba906f756967f9e9ca394464a");
        assert_eq!(
            seen.sha256,
            "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03"
        );
        assert!(seen.check(6, &[ExpectedHash::GitBlob(seen.blob.clone())]).is_ok());
        let (expected, found) = seen.check(6, &[ExpectedHash::Sha256("00".into())]).unwrap_err();
        assert!(
            expected.contains("00") && found.contains("5891"),
            "{expected} {found}"
        );
    }
}
