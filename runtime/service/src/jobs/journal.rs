//! The journal of the ledger: it collects changes and sends them to the store, or drops them where there is none.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::sync::oneshot;
use tokio::time::Instant;

use phi_edge_store::{Batch, Change, Moment, Restored, Signals, Store, Unstored};

/// The maximum of unwritten changes in memory, in bytes, beyond which messages that need no answer are dropped. All others
/// wait for their answer, and have bounds of their own.
const MAX_UNWRITTEN_BYTES: u64 = 16 << 20;

/// A batch that is being stored.
#[derive(Debug)]
pub(crate) struct Stored {
    pub(crate) batch: u64,
    answer: oneshot::Receiver<Result<(), Unstored>>,
}

impl Stored {
    /// Waits until the batch is stored, or can't be.
    pub(crate) async fn wait(mut self) -> Result<(), Unstored> {
        self.ready().await
    }

    /// As [`Stored::wait`], and cancel safe.
    pub(crate) async fn ready(&mut self) -> Result<(), Unstored> {
        (&mut self.answer)
            .await
            .unwrap_or_else(|_| Err(Unstored("the store has ended".to_owned())))
    }
}

pub(crate) struct Journal {
    store: Option<Store>,
    changes: Vec<Change>,
    /// The number of the batch that is being collected.
    number: u64,
}

impl Journal {
    pub(crate) fn new(store: Option<Store>) -> Self {
        Self {
            store,
            changes: Vec::new(),
            number: 1,
        }
    }

    /// Whether changes outlive the process.
    pub(crate) fn is_durable(&self) -> bool {
        self.store.is_some()
    }

    pub(crate) fn signals(&self) -> Option<Arc<Signals>> {
        self.store.as_ref().map(|store| Arc::clone(store.signals()))
    }

    /// Returns the store's folder.
    pub(crate) fn folder(&self) -> Option<&std::path::Path> {
        self.store.as_ref().map(|store| store.config().folder.as_path())
    }

    /// Returns the reason why nothing new may be accepted, if there is one.
    pub(crate) fn failing(&self) -> Option<String> {
        let store = self.store.as_ref()?;
        if store.config().memory_fallback {
            return None;
        }
        store.signals().health.borrow().failing.clone()
    }

    /// Whether the disk is so slow that unwritten changes pile up in memory.
    pub(crate) fn is_behind(&self) -> bool {
        self.store
            .as_ref()
            .is_some_and(|store| store.signals().unwritten.load(Ordering::Relaxed) > MAX_UNWRITTEN_BYTES)
    }

    /// Returns the bytes in use and their maximum, if it is exceeded.
    pub(crate) fn overfull(&self) -> Option<(u64, u64)> {
        let store = self.store.as_ref()?;
        let (bytes, most) = (store.signals().health.borrow().bytes, store.config().max_bytes);
        (bytes > most).then_some((bytes, most))
    }

    /// Returns a moment as it is stored; zeros without a store, where it is not read.
    pub(crate) fn moment(&self, moment: Instant) -> Moment {
        match &self.store {
            Some(store) => store.clock().keep(moment),
            None => Moment { up_ms: 0, wall_ms: 0 },
        }
    }

    /// Returns the time left until a stored moment; zero if it is past.
    pub(crate) fn left(&self, up_ms: i64) -> std::time::Duration {
        self.store
            .as_ref()
            .and_then(|store| store.clock().left(up_ms))
            .unwrap_or_default()
    }

    /// Takes the state that an earlier process left; later calls return `None`.
    pub(crate) fn take_restored(&self) -> Option<Restored> {
        let store = self.store.as_ref()?;
        let mut restored = store.signals().restored.lock();
        restored.take()
    }

    pub(crate) fn note(&mut self, change: Change) {
        if self.store.is_some() {
            self.changes.push(change);
        }
    }

    /// Returns the number of the batch of the next noted change. Batches up to [`Journal::committed`] are stored.
    pub(crate) fn number(&self) -> u64 {
        self.number
    }

    pub(crate) fn committed(&self) -> u64 {
        self.store
            .as_ref()
            .map_or(u64::MAX, |store| *store.signals().committed.borrow())
    }

    /// Sends the noted changes to the store.
    pub(crate) fn send(&mut self) {
        self.hand_over(None, false);
    }

    /// Sends the noted changes to the store, and returns the batch to wait for; `None` if there are no changes.
    pub(crate) fn send_and_wait(&mut self) -> Option<Stored> {
        if self.changes.is_empty() {
            return None;
        }
        let (waiting, answer) = oneshot::channel();
        let batch = self.number;
        self.hand_over(Some(waiting), false);
        Some(Stored { batch, answer })
    }

    /// Replaces everything in the store with `all`.
    pub(crate) fn replace(&mut self, all: Vec<Change>) {
        self.changes = all;
        self.hand_over(None, true);
    }

    fn hand_over(&mut self, waiting: Option<oneshot::Sender<Result<(), Unstored>>>, replaces: bool) {
        let changes = std::mem::take(&mut self.changes);
        if let Some(store) = &self.store
            && (replaces || !changes.is_empty())
        {
            store.send(Batch {
                number: self.number,
                changes,
                replaces,
                waiting,
            });
            self.number += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use phi_edge_store::ReceiptRow;
    use phi_edge_store::{LastEnd, StoreConfig};

    #[test]
    fn a_slow_disk_is_known_by_the_bytes_that_wait() {
        let folder = tempfile::tempdir().unwrap();
        let config = StoreConfig {
            folder: folder.path().to_owned(),
            max_bytes: 1 << 30,
            memory_fallback: false,
        };
        let mut journal = Journal::new(Some(Store::open(config, LastEnd::Innocent).unwrap()));
        let signals = journal.signals().unwrap();
        for n in 0..100 {
            journal.note(Change::Received(ReceiptRow {
                packet_id: n,
                number: u64::from(n) + 1,
                mark: [0; 16],
            }));
            journal.send();
        }
        // Everything is counted back once it is written.
        let last = journal.number() - 1;
        while journal.committed() < last || signals.unwritten.load(Ordering::Relaxed) > 0 {
            std::thread::yield_now();
        }
        assert!(!journal.is_behind());
        signals
            .unwritten
            .store(MAX_UNWRITTEN_BYTES + 1, Ordering::Relaxed);
        assert!(journal.is_behind());
    }
}
