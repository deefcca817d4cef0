//! The progress of a pull or an import.

use std::time::Duration;

/// An event of a pull or an import, for progress bars and logs.
#[derive(Debug)]
pub enum Event<'a> {
    /// A file is there already, with the right content.
    Kept {
        /// Its path in the model directory.
        file: &'a str,
        /// Its bytes.
        size: u64,
    },
    /// A file is begun, or resumed.
    Begun {
        /// Its path in the model directory.
        file: &'a str,
        /// Its bytes.
        size: u64,
        /// The bytes that an earlier pull brought.
        have: u64,
    },
    /// Bytes of a file have arrived.
    At {
        /// Its path in the model directory.
        file: &'a str,
        /// Its bytes so far.
        bytes: u64,
    },
    /// An attempt failed and is made again.
    Retry {
        /// The file, or what else was asked for.
        file: &'a str,
        /// What went wrong.
        why: &'a str,
        /// The wait before the next attempt.
        wait: Duration,
    },
    /// A file is there, verified.
    Done {
        /// Its path in the model directory.
        file: &'a str,
    },
    /// The version before this one was removed, since both would not fit.
    Dropped {
        /// The model.
        name: &'a str,
    },
}

/// The receiver of events; called by several threads.
pub type Watch<'a> = &'a (dyn Fn(&Event<'_>) + Sync);
