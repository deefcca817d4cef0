//! The crash marker: a file that tells the next start how this process ended.
//!
//! An orderly shutdown removes the marker. A crash is noted in it: a fatal signal by its handler, the loss of the
//! engine by the daemon, and what only the outside sees (out of memory, the watchdog) by systemd, which runs
//! `phi-edge record-exit` after the daemon. A marker without a note is a kill from outside; one of an earlier boot is
//! a power cut. Only after a crash are the running jobs suspects.
//!
//! On Windows nothing from outside takes a note, and what ends a process there for a crash runs none of its code. So each
//! marker that is left there is one of a crash, unless the machine was restarted.

use std::io::Write as _;
use std::path::{Path, PathBuf};

use phi_edge_service::{LastEnd, private_folder};

use super::machine_start::MachineStart;

const MARKER_FILE: &str = "running";
const CRASH_LINE: &str = "crashed";

/// The marker of this process.
pub(crate) struct CrashMarker {
    file: PathBuf,
}

impl CrashMarker {
    /// Reads the marker that the previous process left, if any, and writes that of this one. A folder that can't be
    /// written is reported by the store.
    pub(crate) fn place(folder: &Path) -> (Self, LastEnd) {
        let file = folder.join(MARKER_FILE);
        let last = std::fs::read_to_string(&file).map_or(LastEnd::Innocent, |mark| {
            last_end(&mark, &MachineStart::current())
        });
        if last == LastEnd::Crashed {
            tracing::warn!(
                "the process before this one crashed; what it worked on is tried again, one at a time"
            );
        }
        let made = private_folder(folder)
            .and_then(|()| std::fs::write(&file, format!("{}\n", MachineStart::current())));
        if let Err(error) = made {
            tracing::warn!(file = %file.display(), %error, "a crash of this process will not be noticed");
        }
        #[cfg(unix)]
        if let Ok(file) = std::fs::OpenOptions::new().append(true).open(&file) {
            super::fatal_signal::write_on_fatal_signal(file);
        }
        (Self { file }, last)
    }

    /// Notes the loss of the engine as a crash.
    pub(crate) fn note_crash(&self) {
        note_crash(&self.file);
    }

    /// Removes the marker after an orderly shutdown.
    pub(crate) fn remove(self) {
        let _ = std::fs::remove_file(&self.file);
    }
}

/// Notes a crash if systemd reports one (`SERVICE_RESULT` of systemd.exec(5)).
pub(crate) fn record_service_result(folder: &Path, service_result: &str) {
    let file = folder.join(MARKER_FILE);
    if file.exists() && matches!(service_result, "core-dump" | "oom-kill" | "watchdog") {
        note_crash(&file);
    }
}

fn note_crash(file: &Path) {
    let noted = std::fs::OpenOptions::new()
        .append(true)
        .open(file)
        .and_then(|mut file| writeln!(file, "{CRASH_LINE}"));
    if let Err(error) = noted {
        tracing::warn!(file = %file.display(), %error, "the crash can't be noted");
    }
}

fn last_end(mark: &str, current: &MachineStart) -> LastEnd {
    let mut lines = mark.lines();
    let is_same_start = lines.next().is_some_and(|line| current.is_noted_as(line));
    if is_same_start && (!current.has_observer() || lines.any(|line| line == CRASH_LINE)) {
        LastEnd::Crashed
    } else {
        LastEnd::Innocent
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_crash_since_the_machine_started_counts() {
        for (mark, end) in [
            ("b\n", LastEnd::Innocent),
            ("b\ncrashed\n", LastEnd::Crashed),
            ("earlier\ncrashed\n", LastEnd::Innocent),
            ("", LastEnd::Innocent),
        ] {
            let current = MachineStart::Id("b".to_owned());
            assert_eq!(last_end(mark, &current), end, "{mark:?}");
        }
    }

    #[test]
    fn without_an_observer_a_marker_that_is_left_is_a_crash() {
        let noted = |ms: i64| format!("{}\n", MachineStart::At(ms));
        for (mark, end) in [
            (noted(1_000_000_000), LastEnd::Crashed),
            (noted(1_000_004_000), LastEnd::Crashed),
            (noted(1_000_000_000) + "crashed\n", LastEnd::Crashed),
            (noted(1_000_900_000), LastEnd::Innocent),
            (noted(999_100_000), LastEnd::Innocent),
            (String::new(), LastEnd::Innocent),
            ("b\n".to_owned(), LastEnd::Innocent),
        ] {
            let current = MachineStart::At(1_000_000_000);
            assert_eq!(last_end(&mark, &current), end, "{mark:?}");
        }
    }

    #[cfg(unix)]
    #[test]
    fn the_folder_is_private() {
        use std::os::unix::fs::PermissionsExt as _;
        let above = tempfile::tempdir().expect("a folder");
        let folder = above.path().join("state/store");
        let _marker = CrashMarker::place(&folder);
        let mode = std::fs::metadata(&folder)
            .expect("it is made")
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o700);
    }

    #[test]
    fn an_orderly_end_leaves_nothing() {
        let folder = tempfile::tempdir().expect("a folder");
        let (marker, last) = CrashMarker::place(folder.path());
        assert_eq!(last, LastEnd::Innocent);
        if cfg!(unix) {
            record_service_result(folder.path(), "success");
            record_service_result(folder.path(), "signal");
            assert_eq!(CrashMarker::place(folder.path()).1, LastEnd::Innocent, "killed");
        }
        record_service_result(folder.path(), "watchdog");
        assert_eq!(CrashMarker::place(folder.path()).1, LastEnd::Crashed);
        marker.note_crash();
        assert_eq!(CrashMarker::place(folder.path()).1, LastEnd::Crashed);
        marker.remove();
        assert_eq!(CrashMarker::place(folder.path()).1, LastEnd::Innocent);
    }
}
