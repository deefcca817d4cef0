//! The origin of a value.

use std::fmt;
use std::path::PathBuf;

/// The origin of a value, as it is shown to the operator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// The built-in default.
    Default,
    /// A value derived from something else, which is named.
    Derived(&'static str),
    /// A file, with the line counted from 1 where it is known.
    File {
        /// The file as it was named or found.
        path: PathBuf,
        /// The line of the key.
        line: Option<usize>,
    },
    /// An environment variable.
    Environment(String),
    /// The command line; the text is the key that was set.
    Flag(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::Derived(from) => write!(f, "default, from {from}"),
            Self::File {
                path,
                line: Some(line),
            } => write!(f, "{}:{line}", path.display()),
            Self::File { path, line: None } => write!(f, "{}", path.display()),
            Self::Environment(name) => write!(f, "environment {name}"),
            Self::Flag(key) => write!(f, "command line ({key})"),
        }
    }
}
