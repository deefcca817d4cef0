//! The inspection and the purge of a store that no daemon uses.

use std::path::{Path, PathBuf};

use phi_edge_rules::format_of;
use rusqlite::{Connection, ErrorCode, OpenFlags};

use super::event_row::PendingRow;
use super::file::{CLEAR_BLOBS, FILE_NAME, for_each_row, hint, parse, unsigned};
use super::rules;

/// The contents of a store, counted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inventory {
    /// Requests that are not answered yet.
    pub open: u64,
    /// Outcomes that are kept for clients that ask again.
    pub outcomes: u64,
    /// Messages that the broker has not acknowledged.
    pub undelivered: u64,
    /// Files of images of requests that are not answered yet.
    pub images: u64,
    /// The bytes of these files.
    pub image_bytes: u64,
    /// Pictures of windows that are open, counted once for each rule that takes them, and of events that wait for their
    /// summary.
    pub rule_pictures: u64,
    /// The bytes of these pictures.
    pub rule_picture_bytes: u64,
    /// Messages of windows that are open, counted once for each rule that takes them.
    pub rule_messages: u64,
    /// Events of windows that have ended, which wait for their summary.
    pub rule_events: u64,
    /// Bytes of all its files, without those that were set aside.
    pub bytes: u64,
    /// Damaged files that were set aside.
    pub aside: Vec<PathBuf>,
}

/// The part of a store to remove.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purge {
    /// Outcomes that are kept: a client that asks again gets a new answer.
    Outcomes,
    /// Everything, including requests that are not answered yet and open windows of rules.
    All,
    /// Damaged files that were set aside.
    Aside,
}

/// The reason why a store can't be inspected or purged.
#[derive(Debug, thiserror::Error)]
pub enum ToolError {
    /// There is no store.
    #[error("{0}: there is no store (see store.path)")]
    Missing(String),
    /// SQLite reports an error.
    #[error("{file}: {source}{}", tool_hint(source))]
    Sqlite {
        /// The file.
        file: String,
        /// The cause.
        source: rusqlite::Error,
    },
    /// A file can't be read or removed.
    #[error("{file}: {source}")]
    Io {
        /// The file.
        file: String,
        /// The cause.
        source: std::io::Error,
    },
}

/// Returns the contents of the store in `folder`, counted.
///
/// # Errors
/// There is no store, it can't be read, or a daemon uses it.
pub fn inspect(folder: &Path) -> Result<Inventory, ToolError> {
    let connection = open(folder)?;
    let count = |sql: &str| {
        connection
            .query_row(sql, [], |row| row.get::<_, i64>(0))
            .map(|n| u64::try_from(n).unwrap_or(0))
            .map_err(|source| sqlite(folder, source))
    };
    let (rule_messages, rule_events) = if has_rules(&connection).map_err(|source| sqlite(folder, source))? {
        (
            count("SELECT count(*) FROM rule_messages")?,
            count("SELECT count(*) FROM rule_events")?,
        )
    } else {
        (0, 0)
    };
    let (images, image_bytes) = if has_table(&connection, "blobs").map_err(|source| sqlite(folder, source))? {
        (
            count("SELECT count(*) FROM blobs")?,
            count("SELECT coalesce(sum(length(file)), 0) FROM blobs")?,
        )
    } else {
        (0, 0)
    };
    let (rule_pictures, rule_picture_bytes) =
        rule_pictures(&connection).map_err(|source| sqlite(folder, source))?;
    let size = |name: &str| std::fs::metadata(folder.join(name)).map_or(0, |file| file.len());
    Ok(Inventory {
        open: count("SELECT count(*) FROM jobs WHERE outcome IS NULL")?,
        outcomes: count("SELECT count(*) FROM jobs WHERE outcome IS NOT NULL")?,
        undelivered: count("SELECT count(*) FROM outbox")?,
        images,
        image_bytes,
        rule_pictures,
        rule_picture_bytes,
        rule_messages,
        rule_events,
        bytes: size(FILE_NAME) + size(&format!("{FILE_NAME}-wal")),
        aside: aside(folder)?,
    })
}

/// Removes a part of a store; returns the number of rows, or files.
///
/// # Errors
/// As [`inspect`], or something can't be removed.
pub fn purge(folder: &Path, what: Purge) -> Result<usize, ToolError> {
    let tables: &[&str] = match what {
        Purge::Aside => {
            let files = aside(folder)?;
            for file in &files {
                std::fs::remove_file(file).map_err(|source| io(file, source))?;
            }
            return Ok(files.len());
        }
        Purge::Outcomes => &["DELETE FROM jobs WHERE outcome IS NOT NULL"],
        Purge::All => &["DELETE FROM jobs", "DELETE FROM outbox"],
    };
    let connection = open(folder)?;
    let delete = || -> rusqlite::Result<usize> {
        let transaction = connection.unchecked_transaction()?;
        let mut rows = 0;
        for table in tables {
            rows += transaction.execute(table, [])?;
        }
        if what == Purge::All {
            // Receipts are not counted, and their tables differ between versions.
            for table in ["receipts", "former_receipts", "refused", "rule_receipts"] {
                if has_table(&transaction, table)? {
                    transaction.execute(&format!("DELETE FROM {table}"), [])?;
                }
            }
        }
        if what == Purge::All && has_table(&transaction, "blobs")? {
            transaction.execute_batch(CLEAR_BLOBS)?;
        }
        if what == Purge::All && has_rules(&transaction)? {
            let tables = rules::CLEAR.split(';').map(str::trim);
            for table in tables.filter(|table| !table.is_empty()) {
                rows += transaction.execute(table, [])?;
            }
        }
        transaction.commit()?;
        connection.execute_batch("VACUUM")?;
        Ok(rows)
    };
    delete().map_err(|source| sqlite(folder, source))
}

/// Whether the file has the rules' tables: a version of the program without rules may have written it.
fn has_rules(connection: &Connection) -> rusqlite::Result<bool> {
    has_table(connection, "rule_messages")
}

/// Returns the number and the bytes of the rules' pictures.
fn rule_pictures(connection: &Connection) -> rusqlite::Result<(u64, u64)> {
    let (mut count, mut bytes) = (0, 0);
    if !has_rules(connection)? {
        return Ok((count, bytes));
    }
    let sql = "SELECT substr(payload, 1, 16), length(payload) FROM rule_messages";
    for_each_row(connection, sql, |row| {
        if format_of(&row.get::<_, Vec<u8>>(0)?).is_some() {
            count += 1;
            bytes += unsigned(row.get(1)?);
        }
        Ok(())
    })?;
    for_each_row(connection, "SELECT event FROM rule_events", |row| {
        if let Some(event) = parse::<PendingRow>(&row.get::<_, String>(0)?) {
            for file in event.picture_files() {
                count += 1;
                bytes += file;
            }
        }
        Ok(())
    })?;
    Ok((count, bytes))
}

/// Returns a hint for the operator, empty if there is none.
fn tool_hint(error: &rusqlite::Error) -> &'static str {
    match error.sqlite_error_code() {
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => {
            " (a phi-edge that runs uses it: stop the daemon first)"
        }
        _ => hint(error),
    }
}

fn has_table(connection: &Connection, name: &str) -> rusqlite::Result<bool> {
    connection.query_row(
        "SELECT count(*) > 0 FROM sqlite_master WHERE name = ?1",
        [name],
        |row| row.get(0),
    )
}

fn open(folder: &Path) -> Result<Connection, ToolError> {
    let file = folder.join(FILE_NAME);
    if !file.exists() {
        return Err(ToolError::Missing(file.display().to_string()));
    }
    Connection::open_with_flags(&file, OpenFlags::SQLITE_OPEN_READ_WRITE)
        .map_err(|source| sqlite(folder, source))
}

fn aside(folder: &Path) -> Result<Vec<PathBuf>, ToolError> {
    let entries = std::fs::read_dir(folder).map_err(|source| io(folder, source))?;
    let mut files: Vec<PathBuf> = entries
        .flatten()
        .filter(|entry| {
            entry
                .file_name()
                .to_string_lossy()
                .starts_with(&format!("{FILE_NAME}.damaged-"))
        })
        .map(|entry| entry.path())
        .collect();
    files.sort();
    Ok(files)
}

fn sqlite(folder: &Path, source: rusqlite::Error) -> ToolError {
    ToolError::Sqlite {
        file: folder.join(FILE_NAME).display().to_string(),
        source,
    }
}

fn io(file: &Path, source: std::io::Error) -> ToolError {
    ToolError::Io {
        file: file.display().to_string(),
        source,
    }
}

#[cfg(test)]
mod tests;
