//! The lock of a store's folder: one daemon at a time.
//!
//! SQLite's own lock comes too late: by the time that it is asked for, the process has noted in the folder that it runs, and
//! may have a session at the broker. This one is taken first. The system gives it back when the process ends, however that
//! happens.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read as _, Seek as _, Write as _};
use std::path::{Path, PathBuf};

use super::private_folder;

/// The name of the file in the store's folder. It is never removed: a lock on a file that is gone locks no process out.
const FILE_NAME: &str = "lock";
/// The maximum size of a process id and a line's end.
const MAX_PID_BYTES: u64 = 16;

/// The lock of a store's folder, held until this is dropped.
#[derive(Debug)]
pub struct StoreLock {
    _file: File,
}

/// The reason why the lock of a store's folder can't be taken.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another process holds it.
    #[error(
        "{folder}: another phi-edge{} uses this store already (store.path): end that one, or give this one a store.path and \
         a node.name of its own",
        process(*pid)
    )]
    Held {
        /// The store's folder.
        folder: String,
        /// The id of the other process, where it is known.
        pid: Option<u32>,
    },
    /// The file system does not let it be taken.
    #[error("{file}: {source}")]
    Io {
        /// The lock's file, or its folder.
        file: String,
        /// The cause.
        source: std::io::Error,
    },
}

impl StoreLock {
    /// Takes the lock of `folder`, which is made where it is missing.
    ///
    /// # Errors
    /// Another process holds it, or the disk does not let it be taken: then the store may still become usable later.
    pub fn take(folder: &Path) -> Result<Self, LockError> {
        private_folder(folder).map_err(|source| io(folder, source))?;
        let path = folder.join(FILE_NAME);
        let (mut file, writable) = open(&path).map_err(|source| io(&path, source))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(LockError::Held {
                    folder: folder.display().to_string(),
                    pid: holder(&mut file),
                });
            }
            Err(TryLockError::Error(source)) => return Err(io(&path, source)),
        }
        if writable {
            // Only for the error message of others: the lock holds without it.
            let _ = note(&mut file);
        }
        Ok(Self { _file: file })
    }
}

/// Opens the file; returns it, and whether it can be written. On a disk that has become read-only it still locks.
fn open(path: &Path) -> std::io::Result<(File, bool)> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    match options.open(path) {
        Ok(file) => Ok((file, true)),
        Err(error) => match File::open(path) {
            Ok(file) => Ok((file, false)),
            Err(_) => Err(error),
        },
    }
}

fn note(file: &mut File) -> std::io::Result<()> {
    file.set_len(0)?;
    file.rewind()?;
    writeln!(file, "{}", std::process::id())
}

fn holder(file: &mut File) -> Option<u32> {
    let mut text = String::new();
    file.take(MAX_PID_BYTES).read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}

fn process(pid: Option<u32>) -> String {
    pid.map(|pid| format!(" (process {pid})")).unwrap_or_default()
}

fn io(file: &Path, source: std::io::Error) -> LockError {
    LockError::Io {
        file: PathBuf::from(file).display().to_string(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_at_a_time_holds_it() {
        let above = tempfile::tempdir().expect("a folder");
        let folder = above.path().join("state/store");
        let lock = StoreLock::take(&folder).expect("it is free");
        let held = StoreLock::take(&folder).expect_err("it is held");
        let text = held.to_string();
        assert!(matches!(held, LockError::Held { pid: Some(pid), .. } if pid == std::process::id()));
        for part in [
            folder.display().to_string(),
            format!("process {}", std::process::id()),
            "store.path".to_owned(),
        ] {
            assert!(text.contains(&part), "{text}");
        }
        drop(lock);
        StoreLock::take(&folder).expect("it is free again");
    }

    #[test]
    fn a_folder_that_can_not_be_made_is_no_other_process() {
        let above = tempfile::tempdir().expect("a folder");
        let file = above.path().join("file");
        std::fs::write(&file, "").expect("a file");
        assert!(matches!(
            StoreLock::take(&file.join("store")),
            Err(LockError::Io { .. })
        ));
    }

    #[cfg(unix)]
    #[test]
    fn what_is_not_to_be_written_still_locks() {
        use std::os::unix::fs::PermissionsExt as _;
        let folder = tempfile::tempdir().expect("a folder");
        drop(StoreLock::take(folder.path()).expect("it is free"));
        let file = folder.path().join(FILE_NAME);
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o400)).expect("rights");
        let _lock = StoreLock::take(folder.path()).expect("it is free");
        assert!(matches!(
            StoreLock::take(folder.path()),
            Err(LockError::Held { .. })
        ));
    }
}
