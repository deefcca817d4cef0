//! The reasons why the file can't be used, and hints for the operator.

use std::path::Path;

use rusqlite::ErrorCode as Sqlite;

use crate::StoreError;

/// The reason why the file can't be used now.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Trouble {
    #[error("{path}: {source}{}", hint(source))]
    Disk {
        path: String,
        #[source]
        source: rusqlite::Error,
    },
    #[error("{0}: the file is damaged")]
    Damaged(String),
    #[error("{path}: {source}")]
    Folder {
        path: String,
        #[source]
        source: std::io::Error,
    },
    #[error(transparent)]
    Newer(StoreError),
}

impl Trouble {
    /// Whether the disk is full.
    pub(crate) fn is_full(&self) -> bool {
        matches!(self, Self::Disk { source, .. } if source.sqlite_error_code() == Some(Sqlite::DiskFull))
    }
}

pub(super) fn disk(path: &Path, source: rusqlite::Error) -> Trouble {
    use rusqlite::Error;
    let path = path.display().to_string();
    match (&source, source.sqlite_error_code()) {
        // A cell holds a value that is never written there: SQLite does not detect that, and a retry does not help.
        (
            Error::Utf8Error(..)
            | Error::InvalidColumnType(..)
            | Error::FromSqlConversionFailure(..)
            | Error::IntegralValueOutOfRange(..),
            _,
        )
        | (_, Some(Sqlite::DatabaseCorrupt | Sqlite::NotADatabase)) => {
            tracing::error!(file = path, error = %source, "the store can't be read");
            Trouble::Damaged(path)
        }
        _ => Trouble::Disk { path, source },
    }
}

/// Returns a hint for the operator, empty if there is none.
pub(crate) fn hint(error: &rusqlite::Error) -> &'static str {
    match error.sqlite_error_code() {
        Some(Sqlite::DiskFull) => " (make room on the disk of store.path)",
        Some(Sqlite::ReadOnly) => " (the disk of store.path is read-only, or the file is another user's)",
        Some(Sqlite::DatabaseBusy | Sqlite::DatabaseLocked) => {
            " (another phi-edge uses it: give each its own store.path)"
        }
        Some(Sqlite::CannotOpen | Sqlite::PermissionDenied) => " (is store.path writable for this user?)",
        _ => "",
    }
}
