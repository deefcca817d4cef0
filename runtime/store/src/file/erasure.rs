//! The erasure of deleted pictures from SQLite's journal.
//!
//! What is deleted is overwritten in the file, but the journal keeps the pages that were written before until others take
//! their place.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use phi_edge_rules::changes::{KeptMessage, PendingEvent, RestoredRules, RuleChange};
use phi_edge_rules::format_of;
use rusqlite::Connection;

use crate::change::{Batch, Change};
use crate::record::Restored;

/// The time without a write after which the store counts as idle.
const IDLE: Duration = Duration::from_millis(200);
/// The longest time from a deletion to the erasure where the store is never idle, and from one attempt to the next.
const MAX_DELAY: Duration = Duration::from_secs(3);

/// The plan of the next erasure.
#[derive(Debug, Default)]
pub(super) struct Erasure {
    /// Whether the file may have had pictures since it was opened: erasures cost flushes, which other stores need not pay.
    has_pictures: bool,
    due: Option<Due>,
}

/// The time of an erasure.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Due {
    /// When the store is idle, unless it is written before.
    pub(crate) idle: Instant,
    /// When it must not wait any longer.
    pub(crate) latest: Instant,
}

impl Erasure {
    /// The plan of a file that was opened with this state.
    pub(super) fn of_opened(restored: &Restored) -> Self {
        let mut jobs = restored.jobs.iter();
        let has_images = jobs.any(|job| !job.record.job.images.is_empty());
        Self {
            has_pictures: has_images || rules_have(&restored.rules),
            due: None,
        }
    }

    /// The time of the next erasure; `None` if there is nothing to erase.
    pub(super) fn due(&self) -> Option<Due> {
        self.due
    }

    /// Takes note of batches that were committed.
    pub(super) fn note(&mut self, batches: &[Batch]) {
        let changes = || batches.iter().flat_map(|batch| &batch.changes);
        self.has_pictures = self.has_pictures || changes().any(adds_picture);
        let idle = Instant::now() + IDLE;
        if let Some(due) = &mut self.due {
            due.idle = idle;
        } else if self.has_pictures && (batches.iter().any(|batch| batch.replaces) || changes().any(deletes))
        {
            let latest = Instant::now() + MAX_DELAY;
            self.due = Some(Due { idle, latest });
        }
    }

    /// Erases what was deleted; where that fails, says why and tries again later.
    pub(super) fn erase(&mut self, connection: &Connection, path: &Path) {
        let reason = match truncate_journal(connection, path) {
            Ok(()) => {
                self.due = None;
                return;
            }
            Err(reason) => reason,
        };
        tracing::warn!(
            reason,
            "deleted pictures are still in the store's journal; this is tried again"
        );
        let again = Instant::now() + MAX_DELAY;
        self.due = Some(Due {
            idle: again,
            latest: again,
        });
    }
}

/// Writes the journal's pages into the file and cuts it to nothing.
fn truncate_journal(connection: &Connection, path: &Path) -> Result<(), String> {
    let busy: i64 = connection
        .query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get(0))
        .map_err(|error| error.to_string())?;
    if busy != 0 {
        return Err("the journal is in use".to_owned());
    }
    match std::fs::metadata(journal(path)) {
        Ok(file) if file.len() > 0 => Err(format!("the journal still has {} bytes", file.len())),
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.to_string()),
        _ => Ok(()),
    }
}

/// The path of the journal beside the file at `path`.
fn journal(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push("-wal");
    name.into()
}

fn adds_picture(change: &Change) -> bool {
    match change {
        Change::Accept(record) => !record.job.images.is_empty(),
        Change::Rule(RuleChange::KeepMessage(message)) => is_picture(message),
        Change::Rule(RuleChange::AddPendingEvent(event)) => shows_pictures(event),
        Change::Rule(RuleChange::CloseWindow(closing)) => {
            closing.pending.as_ref().is_some_and(shows_pictures)
        }
        _ => false,
    }
}

/// Whether a change deletes rows that may have pictures.
fn deletes(change: &Change) -> bool {
    match change {
        Change::Settle { .. } | Change::Forget(_) => true,
        Change::Rule(RuleChange::CloseWindow(closing)) => !closing.forget.is_empty(),
        Change::Rule(RuleChange::ForgetMessages(_) | RuleChange::RemovePendingEvent { .. }) => true,
        _ => false,
    }
}

fn rules_have(rules: &RestoredRules) -> bool {
    rules.messages.iter().any(is_picture) || rules.pending.iter().any(shows_pictures)
}

fn is_picture(message: &KeptMessage) -> bool {
    format_of(&message.payload).is_some()
}

fn shows_pictures(event: &PendingEvent) -> bool {
    !event.pictures.is_empty()
}
