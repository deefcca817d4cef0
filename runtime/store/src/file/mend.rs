//! The repair of a damaged file: it is set aside, and what can be read of it is restored.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use rusqlite::Connection;

use super::erasure::Erasure;
use super::read::{Reading, read, rebase};
use super::trouble::Trouble;
use super::{FILE_NAME, File};
use crate::clock::{Clock, wall_ms};
use crate::record::Restored;
use crate::{LastEnd, rules};

/// Renames the file and its journal, which are kept.
pub(super) fn set_aside(path: &Path) -> Result<PathBuf, Trouble> {
    let name = |suffix: &str| path.with_file_name(format!("{FILE_NAME}{suffix}"));
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

/// Returns what can still be read of a damaged file. A copy is read, since opening a file changes it.
pub(super) fn salvage(aside: &Path, path: &Path, clock: &Clock, last_end: LastEnd) -> Restored {
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
            erasure: Erasure::default(),
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
        let receipts: HashSet<u16> = restored.receipts.iter().map(|row| row.packet_id).collect();
        let missing = rest.receipts.into_iter();
        restored
            .receipts
            .extend(missing.filter(|row| !receipts.contains(&row.packet_id)));
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
