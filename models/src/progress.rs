//! The progress of a pull or an import.

use std::time::Duration;

/// What happens on the way, for progress bars and logs.
#[derive(Debug)]
pub enum Event<'a> {
    /// A file is there already, with the right content.
    Kept {
        /// Its path in the model directory.
        file: &'a str,
        /// Its bytes.
        size: u64,
    },
    /// A file is begun, or gone on with.
    Begun {
        /// Its path in the model directory.
        file: &'a str,
        /// Its bytes.
        size: u64,
        /// Those that an earlier pull brought.
        have: u64,
    },
    /// So much of it has arrived.
    At {
        /// Its path in the model directory.
        file: &'a str,
        /// Its bytes so far.
        bytes: u64,
    },
    /// Something went wrong and is tried again.
    Retry {
        /// The file, or what else was asked for.
        file: &'a str,
        /// What went wrong.
        why: &'a str,
        /// How long it waits first.
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

/// Is told what happens; by several threads.
pub type Watch<'a> = &'a (dyn Fn(&Event<'_>) + Sync);
