//! The SQLite file.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::{Connection, ErrorCode as Sqlite, OptionalExtension, Row, params};

use tokio::time::Instant;

use super::change::{Batch, Change};
use super::clock::{Clock, Moment, wall_ms};
use super::record::{
    AddressRow, BodyRow, JobRecord, MessageRow, RequestRow, Restored, RestoredJob, RestoredState, Tries,
    ids_of_bytes, ids_to_bytes,
};
use super::{LastEnd, StoreConfig, StoreError, rules, schema};
use crate::job::{JobKey, ReplyAddress};
use crate::reply::Reply;

/// The file in the store's folder.
pub(super) const NAME: &str = "phi-edge.db";
/// Refused requests that are remembered: more than a broker has under way to us.
const REFUSED: i64 = 256;

/// Why the file can't be used now.
#[derive(Debug, thiserror::Error)]
pub(super) enum Trouble {
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
    /// Whether there is no room.
    pub(super) fn is_full(&self) -> bool {
        matches!(self, Self::Disk { source, .. } if source.sqlite_error_code() == Some(Sqlite::DiskFull))
    }
}

/// What a commit cost.
pub(super) struct Flush {
    /// Bytes in use.
    pub(super) bytes: u64,
    /// How long the disk took, if it was waited for.
    pub(super) took: Option<Duration>,
}

/// The file, open and ours alone.
pub(super) struct File {
    connection: Connection,
    path: PathBuf,
    /// Whether commits wait for the disk at present.
    flushing: bool,
}

impl File {
    /// Opens it, made where it is missing, with what an earlier process left in it.
    pub(super) fn open(
        config: &StoreConfig,
        clock: &Clock,
        last_end: LastEnd,
    ) -> Result<(Self, Restored), Trouble> {
        let path = folder(config)?.join(NAME);
        match Self::open_sound(&path, clock, last_end) {
            Err(Trouble::Damaged(_)) => {
                let aside = set_aside(&path)?;
                let mut file = Self::connect(&path)?;
                let restored = salvage(&aside, &path, clock, last_end);
                tracing::error!(
                    aside = %aside.display(),
                    jobs = restored.jobs.len(),
                    messages = restored.outbox.len(),
                    "the store is damaged and was set aside; what could be read of it goes on"
                );
                file.fill(&restored, clock).map_err(|error| disk(&path, error))?;
                Ok((file, restored))
            }
            opened => opened,
        }
    }

    /// An empty one in place of one that turned out to be damaged.
    pub(super) fn replace_damaged(config: &StoreConfig, clock: &Clock) -> Result<Self, Trouble> {
        let path = folder(config)?.join(NAME);
        let aside = set_aside(&path)?;
        tracing::error!(aside = %aside.display(), "the store is damaged and was set aside");
        let file = Self::connect(&path)?;
        file.note_boot(clock).map_err(|error| disk(&path, error))?;
        Ok(file)
    }

    fn open_sound(path: &Path, clock: &Clock, last_end: LastEnd) -> Result<(Self, Restored), Trouble> {
        let mut file = Self::connect(path)?;
        let sound: String = file
            .connection
            .query_row("PRAGMA quick_check(1)", [], |row| row.get(0))
            .map_err(|error| disk(path, error))?;
        if sound != "ok" {
            return Err(Trouble::Damaged(path.display().to_string()));
        }
        let restored = file.restore(clock, last_end).map_err(|error| disk(path, error))?;
        Ok((file, restored))
    }

    fn connect(path: &Path) -> Result<Self, Trouble> {
        private(path).map_err(|source| Trouble::Folder {
            path: path.display().to_string(),
            source,
        })?;
        let connect = || -> rusqlite::Result<Connection> {
            let connection = Connection::open(path)?;
            // Ours alone: two daemons on one store would both answer.
            connection.pragma_update(None, "locking_mode", "EXCLUSIVE")?;
            connection.pragma_update(None, "auto_vacuum", "INCREMENTAL")?;
            connection.pragma_update_and_check(None, "journal_mode", "WAL", |_| Ok(()))?;
            connection.pragma_update(None, "synchronous", "FULL")?;
            connection.pragma_update(None, "temp_store", "MEMORY")?;
            connection.pragma_update(None, "journal_size_limit", 4 << 20)?;
            connection.set_prepared_statement_cache_capacity(64);
            Ok(connection)
        };
        let mut connection = connect().map_err(|error| disk(path, error))?;
        let found = schema::version(&connection).map_err(|error| disk(path, error))?;
        if found > schema::VERSION {
            return Err(Trouble::Newer(StoreError::Newer {
                file: path.display().to_string(),
                found,
                known: schema::VERSION,
            }));
        }
        schema::migrate(&mut connection).map_err(|error| disk(path, error))?;
        Ok(Self {
            connection,
            path: path.to_owned(),
            flushing: true,
        })
    }

    /// Makes all changes of these batches or none.
    pub(super) fn write(&mut self, batches: &[Batch]) -> Result<Flush, Trouble> {
        let urgent = batches
            .iter()
            .any(|batch| batch.replaces || batch.changes.iter().any(Change::is_urgent));
        let begun = Instant::now();
        self.try_write(batches, urgent)
            .map_err(|error| disk(&self.path, error))?;
        Ok(Flush {
            bytes: self.bytes(),
            took: urgent.then(|| begun.elapsed()),
        })
    }

    /// Finds out whether the disk takes writes.
    pub(super) fn probe(&mut self) -> Result<(), Trouble> {
        // Larger than what is left on a disk that is full but for a few bytes.
        const ROOM: usize = 64 << 10;
        let probe = || -> rusqlite::Result<()> {
            let transaction = self.connection.unchecked_transaction()?;
            let filler = "x".repeat(ROOM);
            transaction.execute("REPLACE INTO meta VALUES ('probe', ?1)", [filler])?;
            transaction.execute("DELETE FROM meta WHERE name = 'probe'", [])?;
            transaction.commit()
        };
        probe().map_err(|error| disk(&self.path, error))
    }

    /// Bytes in use.
    pub(super) fn bytes(&self) -> u64 {
        let pragma = |name| -> u64 {
            let value: rusqlite::Result<i64> =
                self.connection.pragma_query_value(None, name, |row| row.get(0));
            value
                .ok()
                .and_then(|value| u64::try_from(value).ok())
                .unwrap_or(0)
        };
        (pragma("page_count").saturating_sub(pragma("freelist_count"))) * pragma("page_size")
    }

    /// Writes what is only in the journal into the file itself.
    pub(super) fn close(self) {
        let _ = self.connection.execute_batch("PRAGMA incremental_vacuum;");
        if let Err((_, error)) = self.connection.close() {
            tracing::warn!(%error, "the store was not closed in good order; the next start puts it right");
        }
    }

    fn try_write(&mut self, batches: &[Batch], urgent: bool) -> rusqlite::Result<()> {
        if self.flushing != urgent {
            self.connection
                .pragma_update(None, "synchronous", if urgent { "FULL" } else { "NORMAL" })?;
            self.flushing = urgent;
        }
        let transaction = self.connection.unchecked_transaction()?;
        for batch in batches {
            if batch.replaces {
                transaction.execute_batch("DELETE FROM jobs; DELETE FROM outbox; DELETE FROM refused;")?;
                transaction.execute_batch(rules::CLEAR)?;
            }
            for change in &batch.changes {
                apply(&transaction, change)?;
            }
        }
        transaction.commit()
    }

    /// Reads everything and notes that this process goes on with it.
    fn restore(&mut self, clock: &Clock, last_end: LastEnd) -> rusqlite::Result<Restored> {
        let transaction = self.connection.transaction()?;
        if boot(&transaction)?.as_deref() != Some(clock.boot()) || clock.boot().is_empty() {
            rebase(&transaction, clock)?;
        }
        if last_end == LastEnd::Crashed {
            transaction.execute_batch(
                "UPDATE jobs SET crashes = crashes + 1
                     WHERE running = 1 AND outcome IS NULL
                     AND (SELECT count(*) FROM jobs WHERE running = 1 AND outcome IS NULL) = 1;
                 UPDATE jobs SET suspect = 1 WHERE running = 1 AND outcome IS NULL;",
            )?;
        }
        transaction.execute_batch("UPDATE jobs SET running = 0 WHERE running = 1")?;
        let restored = read(&transaction, Reading::Sound)?;
        transaction.commit()?;
        self.note_boot(clock)?;
        Ok(restored)
    }

    fn note_boot(&self, clock: &Clock) -> rusqlite::Result<()> {
        self.connection
            .execute("REPLACE INTO meta VALUES ('boot', ?1)", [clock.boot()])?;
        Ok(())
    }

    /// Writes what was read from a damaged file.
    fn fill(&mut self, restored: &Restored, clock: &Clock) -> rusqlite::Result<()> {
        self.note_boot(clock)?;
        let transaction = self.connection.unchecked_transaction()?;
        for job in &restored.jobs {
            apply(&transaction, &Change::Accept(Box::new(job.record.clone())))?;
            let key = job.record.job.key.clone();
            apply(
                &transaction,
                &Change::Addresses {
                    key: key.clone(),
                    addresses: job.addresses.clone(),
                },
            )?;
            if let RestoredState::Done { body, until_up_ms } = &job.state {
                let until = Moment {
                    up_ms: *until_up_ms,
                    wall_ms: wall_ms(),
                };
                let body = Box::new(body.clone());
                apply(&transaction, &Change::Settle { key, body, until })?;
            }
        }
        for reply in &restored.outbox {
            apply(&transaction, &Change::Post(Box::new(reply.clone())))?;
        }
        for change in restored.rules.changes() {
            rules::apply(&transaction, &change)?;
        }
        transaction.commit()
    }
}

fn apply(connection: &Connection, change: &Change) -> rusqlite::Result<()> {
    match change {
        Change::Accept(record) => {
            let JobRecord {
                job,
                receipts,
                prompt,
                place,
                tries,
                accepted,
                expires,
            } = record.as_ref();
            connection
                .prepare_cached(
                    "REPLACE INTO jobs (place, client, id, digest, request, prompt, addresses,
                         accepted_up, accepted_wall, expires_up, expires_wall, attempts, crashes, suspect)
                     VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14)",
                )?
                .execute(params![
                    signed(*place),
                    client(&job.key),
                    job.key.id,
                    job.body_digest,
                    json(&RequestRow::of(job, receipts)),
                    ids_to_bytes(prompt),
                    addresses(std::slice::from_ref(&job.reply)),
                    accepted.up_ms,
                    accepted.wall_ms,
                    expires.up_ms,
                    expires.wall_ms,
                    tries.attempts,
                    tries.crashes,
                    tries.suspect,
                ])?;
        }
        Change::Addresses { key, addresses: all } => {
            connection
                .prepare_cached("UPDATE jobs SET addresses = ?3 WHERE client = ?1 AND id = ?2")?
                .execute(params![client(key), key.id, addresses(all)])?;
        }
        Change::Start { key, attempt } => {
            connection
                .prepare_cached("UPDATE jobs SET running = 1, attempts = ?3 WHERE client = ?1 AND id = ?2")?
                .execute(params![client(key), key.id, attempt])?;
        }
        Change::Pause { key } => {
            connection
                .prepare_cached("UPDATE jobs SET running = 0 WHERE client = ?1 AND id = ?2")?
                .execute(params![client(key), key.id])?;
        }
        Change::Settle { key, body, until } => {
            connection
                .prepare_cached(
                    "UPDATE jobs SET outcome = ?3, until_up = ?4, until_wall = ?5, running = 0, suspect = 0,
                         prompt = x'', addresses = '[]'
                     WHERE client = ?1 AND id = ?2",
                )?
                .execute(params![
                    client(key),
                    key.id,
                    BodyRow::of(body).map(|body| json(&body)),
                    until.up_ms,
                    until.wall_ms
                ])?;
        }
        Change::Post(reply) => {
            if let (Some(delivery), Some(message)) = (reply.delivery, MessageRow::of(reply)) {
                connection
                    .prepare_cached("REPLACE INTO outbox VALUES (?1, ?2)")?
                    .execute(params![signed(delivery), json(&message)])?;
            }
        }
        Change::Delivered(delivery) => {
            connection
                .prepare_cached("DELETE FROM outbox WHERE delivery = ?1")?
                .execute([signed(*delivery)])?;
        }
        Change::Forget(key) => {
            connection
                .prepare_cached("DELETE FROM jobs WHERE client = ?1 AND id = ?2")?
                .execute(params![client(key), key.id])?;
        }
        Change::Refused { receipt } => {
            connection
                .prepare_cached("INSERT INTO refused (receipt) VALUES (?1)")?
                .execute([receipt])?;
            connection
                .prepare_cached("DELETE FROM refused WHERE number <= (SELECT max(number) FROM refused) - ?1")?
                .execute([REFUSED])?;
        }
        Change::Rule(change) => rules::apply(connection, change)?,
    }
    Ok(())
}

/// How rows are read.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Reading {
    /// All, or an error.
    Sound,
    /// From the first row to the first that can't be read.
    Rising,
    /// From the last row back to the first that can't be read.
    Falling,
}

/// Reads all tables.
fn read(connection: &Connection, reading: Reading) -> rusqlite::Result<Restored> {
    let order = if reading == Reading::Falling {
        "DESC"
    } else {
        "ASC"
    };
    let mut restored = Restored::default();
    let tables = [
        each(
            connection,
            &format!(
                "SELECT place, client, id, digest, request, prompt, addresses, accepted_up, accepted_wall,
                     expires_up, expires_wall, attempts, crashes, suspect, outcome, until_up
                 FROM jobs ORDER BY place {order}"
            ),
            |row| {
                restored.jobs.extend(job(row)?);
                Ok(())
            },
        ),
        each(
            connection,
            &format!("SELECT delivery, message FROM outbox ORDER BY delivery {order}"),
            |row| {
                restored.outbox.extend(message(row)?);
                Ok(())
            },
        ),
        each(
            connection,
            &format!("SELECT receipt FROM refused ORDER BY number {order}"),
            |row| {
                restored.refused.push(row.get(0)?);
                Ok(())
            },
        ),
    ];
    let mut tables = Vec::from(tables);
    tables.extend(rules::read(connection, order, &mut restored.rules));
    for table in tables {
        match table {
            Err(error) if reading == Reading::Sound => return Err(error),
            Err(error) => tracing::warn!(%error, "a part of the damaged store can't be read"),
            Ok(()) => {}
        }
    }
    Ok(restored)
}

pub(super) fn each(
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

/// `None` for a row whose words this version does not know; the log says so.
fn job(row: &Row<'_>) -> rusqlite::Result<Option<RestoredJob>> {
    let client: String = row.get(1)?;
    let key = JobKey {
        client: (!client.is_empty()).then_some(client),
        id: row.get(2)?,
    };
    let request: Option<RequestRow> = parse(&row.get::<_, String>(4)?);
    let addresses: Option<Vec<AddressRow>> = parse(&row.get::<_, String>(6)?);
    let outcome: Option<String> = row.get(14)?;
    let body = match &outcome {
        None => Some(None),
        Some(outcome) => parse::<BodyRow>(outcome).and_then(BodyRow::body).map(Some),
    };
    let (Some(request), Some(addresses), Some(body)) = (request, addresses, body) else {
        tracing::error!(
            job.id = key.id,
            job.client = key.client,
            "a stored job can't be understood"
        );
        return Ok(None);
    };
    let addresses: Vec<ReplyAddress> = addresses.into_iter().map(ReplyAddress::from).collect();
    let first = addresses.first().cloned().unwrap_or_else(ReplyAddress::nowhere);
    let moment = |up, wall| -> rusqlite::Result<Moment> {
        Ok(Moment {
            up_ms: row.get(up)?,
            wall_ms: row.get(wall)?,
        })
    };
    Ok(Some(RestoredJob {
        record: JobRecord {
            receipts: request.receipts.clone(),
            job: request.job(key, row.get(3)?, first),
            prompt: ids_of_bytes(&row.get::<_, Vec<u8>>(5)?),
            place: unsigned(row.get(0)?),
            tries: Tries {
                attempts: row.get(11)?,
                crashes: row.get(12)?,
                suspect: row.get(13)?,
            },
            accepted: moment(7, 8)?,
            expires: moment(9, 10)?,
        },
        addresses,
        state: match body {
            None => RestoredState::Open,
            Some(body) => RestoredState::Done {
                body,
                until_up_ms: row.get::<_, Option<i64>>(15)?.unwrap_or_default(),
            },
        },
    }))
}

fn message(row: &Row<'_>) -> rusqlite::Result<Option<Reply>> {
    let delivery = unsigned(row.get(0)?);
    let message = parse::<MessageRow>(&row.get::<_, String>(1)?).and_then(|message| message.reply(delivery));
    if message.is_none() {
        tracing::error!(delivery, "a stored message can't be understood");
    }
    Ok(message)
}

/// The machine was started anew: what is left of each time, by the wall clock, counts from now.
///
/// The wall clock may be anywhere: nothing gets more time than it had, and what was written in the future is new.
fn rebase(connection: &Connection, clock: &Clock) -> rusqlite::Result<()> {
    let now = clock.keep(Instant::now());
    connection.execute(
        "UPDATE jobs SET
             expires_up = ?1 + min(max(expires_wall - ?2, 0), expires_up - accepted_up),
             until_up = ?1 + min(max(until_wall - ?2, 0), coalesce(until_up, 0) - accepted_up),
             accepted_up = ?1 - min(max(?2 - accepted_wall, 0), expires_up - accepted_up)",
        params![now.up_ms, now.wall_ms],
    )?;
    Ok(())
}

fn boot(connection: &Connection) -> rusqlite::Result<Option<String>> {
    connection
        .query_row("SELECT value FROM meta WHERE name = 'boot'", [], |row| row.get(0))
        .optional()
}

/// The folder, ours alone.
fn folder(config: &StoreConfig) -> Result<&Path, Trouble> {
    let folder = config.folder.as_path();
    let mut builder = std::fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(folder).map_err(|source| Trouble::Folder {
        path: folder.display().to_string(),
        source,
    })?;
    Ok(folder)
}

/// Makes the file where it is missing, for nobody else to read: prompts are confidential. SQLite gives its journal the
/// same rights.
fn private(path: &Path) -> std::io::Result<()> {
    let mut options = std::fs::OpenOptions::new();
    options.append(true).create(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path).map(drop)
}

/// Gives the file and its journal another name; they are kept.
fn set_aside(path: &Path) -> Result<PathBuf, Trouble> {
    let name = |suffix: &str| path.with_file_name(format!("{NAME}{suffix}"));
    let mut stamp = wall_ms();
    let mut aside = format!(".damaged-{stamp}");
    while name(&aside).exists() {
        stamp += 1;
        aside = format!(".damaged-{stamp}");
    }
    for part in ["-wal", "-shm", ""] {
        let (from, to) = (name(part), name(&format!("{aside}{part}")));
        match std::fs::rename(&from, &to) {
            Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
                return Err(Trouble::Folder {
                    path: from.display().to_string(),
                    source,
                });
            }
            _ => {}
        }
    }
    Ok(name(&aside))
}

/// What can still be read of a damaged file. It is a copy that is read: opening a file changes it.
fn salvage(aside: &Path, path: &Path, clock: &Clock, last_end: LastEnd) -> Restored {
    let copy = path.with_file_name("salvage.db");
    let journal = |file: &Path| {
        let mut name = file.as_os_str().to_owned();
        name.push("-wal");
        PathBuf::from(name)
    };
    let read = || -> Result<Restored, Box<dyn std::error::Error>> {
        std::fs::copy(aside, &copy)?;
        match std::fs::copy(journal(aside), journal(&copy)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
            _ => {}
        }
        let mut file = File {
            connection: Connection::open(&copy)?,
            path: copy.clone(),
            flushing: true,
        };
        if let Ok(restored) = file.restore(clock, last_end) {
            return Ok(restored);
        }
        // From both ends, up to what is broken in the middle.
        let _ = rebase(&file.connection, clock);
        let mut restored = read(&file.connection, Reading::Rising)?;
        let rest = read(&file.connection, Reading::Falling)?;
        let jobs: HashSet<u64> = restored.jobs.iter().map(|job| job.record.place).collect();
        let outbox: HashSet<_> = restored.outbox.iter().map(|reply| reply.delivery).collect();
        let missing = rest.jobs.into_iter().rev();
        restored
            .jobs
            .extend(missing.filter(|job| !jobs.contains(&job.record.place)));
        let missing = rest.outbox.into_iter().rev();
        restored
            .outbox
            .extend(missing.filter(|reply| !outbox.contains(&reply.delivery)));
        rules::add_missing(&mut restored.rules, rest.rules);
        Ok(restored)
    };
    let restored = read().unwrap_or_else(|error| {
        tracing::error!(%error, "nothing can be read of the damaged store");
        Restored::default()
    });
    for file in [&copy, &journal(&copy)] {
        let _ = std::fs::remove_file(file);
    }
    restored
}

fn disk(path: &Path, source: rusqlite::Error) -> Trouble {
    use rusqlite::Error;
    let path = path.display().to_string();
    match (&source, source.sqlite_error_code()) {
        // A cell that holds what nobody writes there: SQLite does not see that, and no other attempt will mend it.
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

/// What to do about it.
pub(super) fn hint(error: &rusqlite::Error) -> &'static str {
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

fn client(key: &JobKey) -> &str {
    key.client.as_deref().unwrap_or_default()
}

fn addresses(addresses: &[ReplyAddress]) -> String {
    let rows: Vec<AddressRow> = addresses.iter().map(AddressRow::from).collect();
    json(&rows)
}

pub(super) fn json(value: &impl serde::Serialize) -> String {
    // Of texts and numbers: nothing that can't be written.
    serde_json::to_string(value).unwrap_or_default()
}

pub(super) fn parse<T: serde::de::DeserializeOwned>(text: &str) -> Option<T> {
    serde_json::from_str(text)
        .inspect_err(|error| tracing::error!(%error, "a stored row can't be understood"))
        .ok()
}

/// SQLite knows signed numbers only; ours stay far below their end.
pub(super) fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

pub(super) fn unsigned(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(0)
}
