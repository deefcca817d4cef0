//! The durable store of accepted jobs, their outcomes, and messages that the broker has not acknowledged.
//!
//! The ledger in memory decides; the store takes every change in order and reports when a change can no longer be lost.
//! One thread owns the SQLite file and commits what has come together since its last commit in one transaction, so that
//! the number of flushes to the disk grows with time and not with requests.
//!
//! While the disk fails, new requests are refused. What was accepted before goes on in memory, and outcomes wait there.
//! When the disk takes writes again, the ledger sends all that it holds and the file is rewritten: so a failure costs no
//! memory, however long it lasts.

mod change;
mod clock;
pub mod encode_note;
mod event_row;
mod file;
mod lock;
mod receipt;
mod record;
mod rules;
mod schema;
#[cfg(test)]
mod test_changes;
mod tool;
mod writer;

use parking_lot::Mutex;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;

use tokio::sync::{Notify, watch};

use writer::Writer;

pub use file::private_folder;
pub use lock::{LockError, StoreLock};
pub use tool::{Inventory, Purge, ToolError, inspect, purge};

pub use change::{Batch, Change, Unstored};
pub use clock::{Clock, Moment, wall_ms};
pub use receipt::{RECEIPT_REACH, ReceiptMark, ReceiptRow, receipt_mark};
pub use record::{JobRecord, Restored, RestoredJob, RestoredState, Tries};

/// The configuration of the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreConfig {
    /// The store's folder; created where it is missing.
    pub folder: PathBuf,
    /// The maximum size of the store, in bytes; beyond it new requests are refused as `busy`. What was accepted is still
    /// stored.
    pub max_bytes: u64,
    /// Whether to go on without a store where it fails. What is accepted then can be lost.
    pub memory_fallback: bool,
}

/// The way in which the process before this one ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LastEnd {
    /// It ended by itself, by a signal from outside or with the machine: none of its jobs is to blame.
    Innocent,
    /// It crashed: a fault of its own, out of memory, or hung until the watchdog ended it.
    Crashed,
}

/// The reason why the store can't be used at all.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A later version of the program wrote it.
    #[error(
        "{file}: written by a newer phi-edge (schema {found}, this one knows {known}): install that version again, or \
         set the file aside"
    )]
    Newer {
        /// The file.
        file: String,
        /// The schema version of the file.
        found: i64,
        /// The newest schema version that this program knows.
        known: i64,
    },
    /// The store's thread can't be started.
    #[error("the store's thread can't be started: {0}")]
    Thread(std::io::Error),
}

/// The health of the store.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct StoreHealth {
    /// The reason why it can't be written, in one line; `None` if it can.
    pub failing: Option<String>,
    /// Bytes in use.
    pub bytes: u64,
    /// The number of commits that were flushed to the disk, since the start.
    pub flushes: u64,
    /// The duration of the last flush.
    pub last_flush: std::time::Duration,
}

/// A callback with the time that one flush to the disk took.
pub type FlushObserver = Box<dyn Fn(std::time::Duration) + Send>;

/// The durable store. Dropping it waits until everything is written.
pub struct Store {
    config: StoreConfig,
    clock: Clock,
    batches: Option<mpsc::Sender<Unwritten>>,
    signals: Arc<Signals>,
    thread: Option<JoinHandle<()>>,
}

/// A batch that is not written yet, and its cost in bytes.
struct Unwritten {
    batch: Batch,
    cost: u64,
}

/// The signals of the store's thread.
#[derive(Debug, Default)]
pub struct Signals {
    /// The number of the last batch that can't be lost any more.
    pub committed: watch::Sender<u64>,
    /// The health of the store.
    pub health: watch::Sender<StoreHealth>,
    /// The state that an earlier process left, once it could be read.
    pub restored: Mutex<Option<Restored>>,
    /// The number of requests for the complete state.
    pub refill: watch::Sender<u64>,
    /// The memory of the batches that were sent and are not written, in bytes.
    pub unwritten: AtomicU64,
    /// Notified when one of the above has changed.
    pub news: Notify,
}

impl Store {
    /// Opens the store. A disk that fails now is retried, and [`Store::health`] reports it. A damaged file is set aside under
    /// another name, and what can still be read of it is taken over.
    ///
    /// # Errors
    /// The file is a newer version's.
    pub fn open(config: StoreConfig, last_end: LastEnd) -> Result<Self, StoreError> {
        Self::open_observed(config, last_end, Box::new(|_| ()))
    }

    /// As [`Store::open`]; `on_flush` is called on the store's thread with the time that each wait for the disk took.
    ///
    /// # Errors
    /// As [`Store::open`].
    pub fn open_observed(
        config: StoreConfig,
        last_end: LastEnd,
        on_flush: FlushObserver,
    ) -> Result<Self, StoreError> {
        let clock = Clock::of_this_process();
        let signals = Arc::new(Signals::default());
        let (batches, inbox) = mpsc::channel();
        let writer = Writer::new(
            config.clone(),
            last_end,
            clock.clone(),
            Arc::clone(&signals),
            on_flush,
        )?;
        let thread = std::thread::Builder::new()
            .name("store".into())
            .spawn(move || writer.run(&inbox))
            .map_err(StoreError::Thread)?;
        Ok(Self {
            config,
            clock,
            batches: Some(batches),
            signals,
            thread: Some(thread),
        })
    }

    /// Returns the health of the store, with each change.
    pub fn health(&self) -> watch::Receiver<StoreHealth> {
        self.signals.health.subscribe()
    }

    /// Returns the clock of the moments that are stored.
    pub fn clock(&self) -> &Clock {
        &self.clock
    }

    /// Returns the signals of the store's thread.
    pub fn signals(&self) -> &Arc<Signals> {
        &self.signals
    }

    /// Returns the configuration of the store.
    pub fn config(&self) -> &StoreConfig {
        &self.config
    }

    /// Sends a batch to the store's thread; never waits.
    pub fn send(&self, batch: Batch) {
        if let Some(batches) = &self.batches {
            let cost = batch.cost();
            // An error: the thread has died, and its panic is in the log.
            if batches.send(Unwritten { batch, cost }).is_ok() {
                self.signals.unwritten.fetch_add(cost, Ordering::Relaxed);
            }
        }
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        self.batches = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the store's thread panicked");
        }
    }
}
