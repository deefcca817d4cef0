//! The SQLite file.

mod apply;
mod blobs;
mod erasure;
mod mend;
mod read;
mod trouble;
mod value;

use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::Connection;

use tokio::time::Instant;

use super::change::{Batch, Change};
use super::clock::{Clock, Moment, wall_ms};
use super::record::{Restored, RestoredState};
use super::{LastEnd, StoreConfig, StoreError, rules, schema};
use crate::receipt::RECEIPT_REACH;
use apply::apply;
use blobs::SWEEP_BLOBS;
use erasure::Erasure;
use mend::{salvage, set_aside};
use read::{Reading, boot, read, rebase};
use trouble::disk;

pub(super) use blobs::CLEAR_BLOBS;
pub(super) use erasure::Due;
pub(super) use trouble::{Trouble, hint};
pub(super) use value::for_each_row;
pub(super) use value::{json, parse, signed, unsigned};

/// The name of the file in the store's folder.
pub(super) const FILE_NAME: &str = "phi-edge.db";

/// The cost of a commit.
pub(super) struct Flush {
    /// Bytes in use.
    pub(super) bytes: u64,
    /// The time that the flush took, if there was one.
    pub(super) took: Option<Duration>,
}

/// The open file, locked by this process.
pub(super) struct File {
    connection: Connection,
    path: PathBuf,
    /// Whether commits wait for the disk at present.
    flushing: bool,
    erasure: Erasure,
}

impl File {
    /// Opens the file, created where it is missing, and reads the state that an earlier process left in it.
    pub(super) fn open(
        config: &StoreConfig,
        clock: &Clock,
        last_end: LastEnd,
    ) -> Result<(Self, Restored), Trouble> {
        let path = folder(config)?.join(FILE_NAME);
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
                file.erasure = Erasure::of_opened(&restored);
                Ok((file, restored))
            }
            opened => opened,
        }
    }

    /// Returns an empty file in place of one that turned out to be damaged.
    pub(super) fn replace_damaged(config: &StoreConfig, clock: &Clock) -> Result<Self, Trouble> {
        let path = folder(config)?.join(FILE_NAME);
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
        file.erasure = Erasure::of_opened(&restored);
        // The journal of a process that crashed may have pictures that it had deleted.
        file.erase();
        Ok((file, restored))
    }

    fn connect(path: &Path) -> Result<Self, Trouble> {
        private(path).map_err(|source| Trouble::Folder {
            path: path.display().to_string(),
            source,
        })?;
        let connect = || -> rusqlite::Result<Connection> {
            let connection = Connection::open(path)?;
            // Exclusive: two daemons on one store would both answer.
            connection.pragma_update(None, "locking_mode", "EXCLUSIVE")?;
            connection.pragma_update(None, "auto_vacuum", "INCREMENTAL")?;
            connection.pragma_update_and_check(None, "journal_mode", "WAL", |_| Ok(()))?;
            connection.pragma_update(None, "synchronous", "FULL")?;
            // What is deleted is overwritten: prompts and images are confidential.
            connection.pragma_update(None, "secure_delete", "ON")?;
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
            erasure: Erasure::default(),
        })
    }

    /// Commits all changes of these batches or none.
    pub(super) fn write(&mut self, batches: &[Batch]) -> Result<Flush, Trouble> {
        let urgent = batches
            .iter()
            .any(|batch| batch.replaces || batch.changes.iter().any(Change::is_urgent));
        let begun = Instant::now();
        self.try_write(batches, urgent)
            .map_err(|error| disk(&self.path, error))?;
        self.erasure.note(batches);
        Ok(Flush {
            bytes: self.bytes(),
            took: urgent.then(|| begun.elapsed()),
        })
    }

    /// The time at which [`File::erase`] is to be called; `None` if there is nothing to erase.
    pub(super) fn erasure_due(&self) -> Option<Due> {
        self.erasure.due()
    }

    /// Erases deleted pictures from the journal. Takes flushes to the disk: for times when nothing waits for a commit.
    pub(super) fn erase(&mut self) {
        self.erasure.erase(&self.connection, &self.path);
    }

    /// Checks whether the disk takes writes.
    pub(super) fn probe(&mut self) -> Result<(), Trouble> {
        // Larger than what is left on a disk that is full but for a few bytes.
        const PROBE_BYTES: usize = 64 << 10;
        let probe = || -> rusqlite::Result<()> {
            let transaction = self.connection.unchecked_transaction()?;
            let filler = "x".repeat(PROBE_BYTES);
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

    /// Writes what is only in the journal into the file itself, and closes it.
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
                transaction.execute_batch("DELETE FROM jobs; DELETE FROM outbox; DELETE FROM receipts;")?;
                transaction.execute_batch(CLEAR_BLOBS)?;
                transaction.execute_batch(rules::CLEAR)?;
            }
            for change in &batch.changes {
                apply(&transaction, change)?;
            }
        }
        transaction.commit()
    }

    /// Reads the state and records that this process continues it.
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
        // By now the broker redelivers nothing that an earlier version of the program has handled.
        transaction.execute(
            "DELETE FROM former_receipts WHERE (SELECT max(number) FROM receipts) > ?1",
            [signed(RECEIPT_REACH)],
        )?;
        transaction.execute_batch(SWEEP_BLOBS)?;
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
        for receipt in &restored.receipts {
            apply(&transaction, &Change::Received(*receipt))?;
        }
        if let Some(note) = &restored.link_note {
            apply(&transaction, &Change::LinkNote(note.clone()))?;
        }
        for change in restored.rules.changes() {
            rules::apply(&transaction, &change)?;
        }
        transaction.commit()
    }
}

/// Returns the store's folder, created where it is missing.
fn folder(config: &StoreConfig) -> Result<&Path, Trouble> {
    let folder = config.folder.as_path();
    private_folder(folder).map_err(|source| Trouble::Folder {
        path: folder.display().to_string(),
        source,
    })?;
    Ok(folder)
}

/// Creates a folder where it is missing, accessible to this user only: what is stored in it is confidential.
///
/// # Errors
/// It can't be created.
pub fn private_folder(folder: &Path) -> std::io::Result<()> {
    let mut builder = std::fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(folder)
}

/// Creates the file where it is missing, accessible to this user only: prompts are confidential. SQLite gives its journal
/// the same rights.
fn private(path: &Path) -> std::io::Result<()> {
    let mut options = std::fs::OpenOptions::new();
    options.append(true).create(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path).map(drop)
}
