//! The schema of the file, and its migrations.

use rusqlite::{Connection, Result};

/// The schema version that this program writes.
pub(super) const VERSION: i64 = 4;

/// The migrations, one per version: the first creates the tables, the others change them.
///
/// Rows of a new table are read by `file/read.rs` into `Restored` (with moments also rebased there), merged by
/// `file/mend.rs` where the file is damaged, written back by `File::fill`, and deleted where a batch replaces everything
/// (`file/mod.rs`) and where the store is emptied (`tool.rs`).
const MIGRATIONS: [&str; 4] = [
    "
    CREATE TABLE meta (
        name TEXT PRIMARY KEY,
        value TEXT NOT NULL
    ) WITHOUT ROWID;
    -- A row per accepted request, until its outcome is forgotten.
    CREATE TABLE jobs (
        place INTEGER PRIMARY KEY,
        client TEXT NOT NULL,           -- empty: the shared topic
        id TEXT NOT NULL,
        digest BLOB NOT NULL,
        request TEXT NOT NULL,
        prompt BLOB NOT NULL,
        addresses TEXT NOT NULL,        -- who waits
        accepted_up INTEGER NOT NULL,   -- milliseconds since the machine started
        accepted_wall INTEGER NOT NULL, -- milliseconds since 1970
        expires_up INTEGER NOT NULL,
        expires_wall INTEGER NOT NULL,
        running INTEGER NOT NULL DEFAULT 0,
        suspect INTEGER NOT NULL DEFAULT 0, -- ran when the process crashed
        attempts INTEGER NOT NULL DEFAULT 0,
        crashes INTEGER NOT NULL DEFAULT 0,
        outcome TEXT,
        until_up INTEGER,
        until_wall INTEGER,
        UNIQUE (client, id)
    );
    -- Messages that the broker has not acknowledged.
    CREATE TABLE outbox (
        delivery INTEGER PRIMARY KEY,
        message TEXT NOT NULL
    );
    -- The last requests that were refused.
    CREATE TABLE refused (
        number INTEGER PRIMARY KEY,
        receipt BLOB NOT NULL
    );
",
    "
    -- Messages of windows that are open, a row for each rule.
    CREATE TABLE rule_messages (
        seq INTEGER PRIMARY KEY,
        rule TEXT NOT NULL,
        grp TEXT NOT NULL,
        arrived INTEGER NOT NULL,       -- milliseconds since 1970, as the windows' clock had it
        topic TEXT NOT NULL,
        payload BLOB NOT NULL
    );
    -- What is known of a group beside its messages.
    CREATE TABLE rule_marks (
        rule TEXT NOT NULL,
        grp TEXT NOT NULL,
        mark TEXT NOT NULL,
        PRIMARY KEY (rule, grp)
    ) WITHOUT ROWID;
    -- Windows that have ended, until their event is in the outbox.
    CREATE TABLE rule_events (
        event_id TEXT PRIMARY KEY,
        ended INTEGER NOT NULL,
        event TEXT NOT NULL,
        output TEXT NOT NULL,
        messages TEXT NOT NULL
    ) WITHOUT ROWID;
    -- The last messages that were counted, should the broker deliver one again.
    CREATE TABLE rule_receipts (
        number INTEGER PRIMARY KEY,
        receipt BLOB NOT NULL
    );
    -- Values of dedupe.
    CREATE TABLE rule_seen (
        rule TEXT NOT NULL,
        value TEXT NOT NULL,
        seen INTEGER NOT NULL,
        PRIMARY KEY (rule, value)
    ) WITHOUT ROWID;
    CREATE INDEX rule_seen_by_time ON rule_seen (seen);
",
    "
    -- The last message of each packet id that was dealt with, should the broker deliver it again.
    CREATE TABLE receipts (
        packet INTEGER PRIMARY KEY,
        number INTEGER NOT NULL,        -- the place in the order of arrival
        mark BLOB NOT NULL              -- of the message's content
    );
    -- Receipts of earlier versions, which had no packet ids.
    CREATE TABLE former_receipts (
        mark BLOB PRIMARY KEY
    ) WITHOUT ROWID;
    INSERT OR IGNORE INTO former_receipts
        SELECT substr(receipt, 1, 16) FROM refused UNION SELECT substr(receipt, 1, 16) FROM rule_receipts;
    DROP TABLE refused;
    DROP TABLE rule_receipts;
",
    "
    -- Files of images, one row however many jobs need it.
    CREATE TABLE blobs (
        digest BLOB PRIMARY KEY,        -- SHA-256 of the file
        file BLOB NOT NULL
    );
    -- The images of jobs without an outcome.
    CREATE TABLE job_blobs (
        place INTEGER NOT NULL,         -- of the job
        position INTEGER NOT NULL,      -- in the job's images
        digest BLOB NOT NULL,
        detail TEXT NOT NULL,
        PRIMARY KEY (place, position)
    ) WITHOUT ROWID;
    CREATE INDEX job_blobs_by_digest ON job_blobs (digest);
",
];

/// Returns the schema version of a file; 0 for an empty one.
pub(super) fn version(connection: &Connection) -> Result<i64> {
    connection.pragma_query_value(None, "user_version", |row| row.get(0))
}

/// Migrates the file to [`VERSION`], in one transaction.
pub(super) fn migrate(connection: &mut Connection) -> Result<()> {
    let from = version(connection)?;
    if from == VERSION {
        return Ok(());
    }
    let transaction = connection.transaction()?;
    for step in MIGRATIONS.iter().skip(usize::try_from(from).unwrap_or(0)) {
        transaction.execute_batch(step)?;
    }
    transaction.pragma_update(None, "user_version", VERSION)?;
    transaction.commit()
}
