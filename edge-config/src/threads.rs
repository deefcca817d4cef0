//! The number of threads of one step.

use serde::{Deserialize, Serialize};

/// The requested number of threads of one step. The key `runtime.threads` in `schema.rs` says what is accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Threads {
    /// This many.
    Count(usize),
    /// One for each fast core that this process may use.
    Auto(AutoWord),
}

impl Threads {
    /// Returns the number, where it is given.
    pub fn count(self) -> Option<usize> {
        match self {
            Self::Count(count) => Some(count),
            Self::Auto(_) => None,
        }
    }
}

/// The word `auto`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AutoWord {
    /// `auto`
    Auto,
}
