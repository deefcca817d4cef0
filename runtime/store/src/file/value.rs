//! Rows and the values in their cells.

use phi_edge_api::JobKey;
use rusqlite::{Connection, Row};

pub(crate) fn json(value: &impl serde::Serialize) -> String {
    // Rows consist of texts and numbers, which can always be written.
    serde_json::to_string(value).unwrap_or_default()
}

pub(crate) fn parse<T: serde::de::DeserializeOwned>(text: &str) -> Option<T> {
    serde_json::from_str(text)
        .inspect_err(|error| tracing::error!(%error, "a stored row can't be understood"))
        .ok()
}

/// Returns a signed number: SQLite knows no others, and the store's stay far below their limit.
pub(crate) fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

pub(crate) fn unsigned(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(0)
}

/// Returns the client of a key; empty on the shared topic.
pub(super) fn client(key: &JobKey) -> &str {
    key.client.as_deref().unwrap_or_default()
}

/// Calls `take` with each row of a query.
pub(crate) fn for_each_row(
    connection: &Connection,
    sql: &str,
    mut take: impl FnMut(&Row<'_>) -> rusqlite::Result<()>,
) -> rusqlite::Result<()> {
    let mut statement = connection.prepare(sql)?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        take(row)?;
    }
    Ok(())
}
