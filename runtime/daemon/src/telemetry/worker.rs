//! A background worker: a named thread with a bounded queue. Senders never wait; items that do not fit are lost and
//! counted.

use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::Duration;

/// The sending end of a background worker.
pub(super) struct Worker<T> {
    /// None once the worker is closed.
    queue: Mutex<Option<SyncSender<T>>>,
    lost: LostCounter,
    /// Disconnected when the thread has ended.
    ended: Mutex<Receiver<()>>,
}

/// The receiving end of a background worker, for its thread.
pub(super) struct WorkerThread<T> {
    pub(super) items: Receiver<T>,
    pub(super) lost: LostCounter,
    /// Disconnects [`Worker::ended`] when it is dropped.
    _ended: SyncSender<()>,
}

/// The result of handing an item to a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Handed {
    Queued,
    /// The worker was closed before.
    Closed,
    /// The queue is full or the thread has ended: the item is dropped and counted.
    Lost {
        /// No item was lost before this one.
        first: bool,
    },
}

/// The number of items that were dropped by the senders or by the thread. Copies have the same number.
#[derive(Debug, Clone, Default)]
pub(super) struct LostCounter(Arc<AtomicU64>);

impl<T: Send + 'static> Worker<T> {
    /// Starts a thread of this name. `run` is to take items until their queue is disconnected.
    ///
    /// # Errors
    /// The thread can't be started.
    pub(super) fn start(
        name: &str,
        capacity: usize,
        run: impl FnOnce(&WorkerThread<T>) + Send + 'static,
    ) -> std::io::Result<Self> {
        let (worker, thread) = Self::pair(capacity);
        std::thread::Builder::new()
            .name(name.into())
            .spawn(move || run(&thread))?;
        Ok(worker)
    }

    /// Both ends, without a thread.
    pub(super) fn pair(capacity: usize) -> (Self, WorkerThread<T>) {
        let (queue, items) = sync_channel(capacity);
        let (ended_tx, ended) = sync_channel(0);
        let lost = LostCounter::default();
        let worker = Self {
            queue: Mutex::new(Some(queue)),
            lost: lost.clone(),
            ended: Mutex::new(ended),
        };
        let thread = WorkerThread {
            items,
            lost,
            _ended: ended_tx,
        };
        (worker, thread)
    }

    /// Hands an item to the thread without waiting for room.
    pub(super) fn send(&self, item: T) -> Handed {
        let queue = self.queue.lock();
        match queue.as_ref().map(|queue| queue.try_send(item)) {
            None => Handed::Closed,
            Some(Ok(())) => Handed::Queued,
            Some(Err(_)) => self.lose(),
        }
    }

    /// Counts an item that its sender drops, by a bound of the sender's.
    pub(super) fn lose(&self) -> Handed {
        Handed::Lost {
            first: self.lost.add(),
        }
    }

    pub(super) fn lost(&self) -> LostCounter {
        self.lost.clone()
    }

    /// Takes no more items and waits until the thread has worked off those in the queue; false if the time is up first.
    pub(super) fn close(&self, limit: Duration) -> bool {
        drop(self.queue.lock().take());
        let ended = self.ended.lock();
        ended.recv_timeout(limit) != Err(RecvTimeoutError::Timeout)
    }
}

impl LostCounter {
    /// Counts one more and returns whether it is the first.
    pub(super) fn add(&self) -> bool {
        self.0.fetch_add(1, Ordering::Relaxed) == 0
    }

    pub(super) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_queue_loses_items_and_a_closed_worker_takes_none() {
        let (worker, thread) = Worker::pair(1);
        assert_eq!(worker.send(1), Handed::Queued);
        assert_eq!(worker.send(2), Handed::Lost { first: true });
        assert_eq!(worker.send(3), Handed::Lost { first: false });
        assert_eq!(worker.lost().get(), 2);
        assert!(!worker.close(Duration::ZERO), "its thread has not ended");
        assert_eq!(worker.send(4), Handed::Closed);
        assert_eq!(thread.items.iter().collect::<Vec<_>>(), [1]);
        drop(thread);
        assert!(worker.close(Duration::ZERO));
        assert_eq!(worker.lost().get(), 2);
    }

    #[test]
    fn what_is_queued_is_worked_off_before_the_end() {
        let (done_tx, done) = sync_channel(8);
        let worker = Worker::start("test", 8, move |thread: &WorkerThread<u32>| {
            for item in &thread.items {
                let _ = done_tx.send(item);
            }
        })
        .expect("a thread");
        for item in 0..8 {
            assert_eq!(worker.send(item), Handed::Queued);
        }
        assert!(worker.close(Duration::from_secs(30)));
        assert_eq!(done.iter().collect::<Vec<_>>(), (0..8).collect::<Vec<_>>());
    }
}
