//! The faults of a configuration: one line each, saying what is wrong, where, and what is expected.

use std::io;
use std::path::PathBuf;

use crate::Origin;

/// Why a configuration could not be loaded. Secrets never appear in a message.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// A file or folder could not be read.
    #[error("{path}: can't read the configuration ({kind}); check that it exists and that the service user may read it", path = .path.display(), kind = .source.kind())]
    Read {
        /// The file or folder.
        path: PathBuf,
        /// The fault of the operating system.
        source: io::Error,
    },
    /// A file is not TOML.
    #[error("{origin}: not valid TOML (column {column}): {problem}")]
    Syntax {
        /// File and line.
        origin: Origin,
        /// The column, counted from 1.
        column: usize,
        /// The parser's message.
        problem: String,
    },
    /// A key that does not exist.
    #[error("{origin}: unknown key `{key}`; the nearest known one is `{nearest}`")]
    UnknownKey {
        /// The key as written, with its sections.
        key: String,
        /// The origin of the key.
        origin: Origin,
        /// The known key, or for an environment variable the known variable, that is most like it.
        nearest: String,
    },
    /// A value of the wrong type or out of range.
    #[error("{origin}: `{key}` must be {expected}, but is {found}")]
    Value {
        /// The key with its sections.
        key: String,
        /// Where it stands.
        origin: Origin,
        /// The value, shortened; redacted for secrets.
        found: String,
        /// The expected shape and range.
        expected: String,
    },
    /// Values that are right by themselves but do not go together.
    #[error("{origin}: `{key}`: {problem}")]
    Conflict {
        /// The key to change first.
        key: &'static str,
        /// The origin of its value.
        origin: Origin,
        /// The contradiction, and what to do.
        problem: String,
    },
    /// A rule that breaks the fixed part of a rule's form.
    #[error("{origin}: rule {rule}: {problem}")]
    Rule {
        /// The rule's name in quotes, or its place in the file.
        rule: String,
        /// Where it stands.
        origin: Origin,
        /// What is wrong and what is expected.
        problem: String,
    },
    /// The checked values did not fit the structs: a fault of this crate, not of the configuration.
    #[error("the configuration could not be put together: {0}; please report this")]
    Internal(String),
}
