//! The thread that writes the store's file.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use super::change::{Batch, Unstored};
use super::clock::Clock;
use super::file::{File, Trouble};
use super::record::Restored;
use super::{FlushObserver, LastEnd, Signals, StoreConfig, StoreError, Unwritten};

/// The maximum number of batches in one commit: what waits for it must not wait for ever.
const MAX_BATCHES_PER_COMMIT: usize = 1024;
/// The time between two attempts at a disk that fails.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);

pub(super) struct Writer {
    config: StoreConfig,
    clock: Clock,
    last_end: LastEnd,
    signals: Arc<Signals>,
    on_flush: FlushObserver,
    file: Option<File>,
    /// Whether the state of an earlier process was read.
    restored: bool,
    failing: Option<Failing>,
}

struct Failing {
    reason: String,
    again: Instant,
    /// Whether the disk takes writes again, and the complete state was requested.
    asked: bool,
}

impl Writer {
    pub(super) fn new(
        config: StoreConfig,
        last_end: LastEnd,
        clock: Clock,
        signals: Arc<Signals>,
        on_flush: FlushObserver,
    ) -> Result<Self, StoreError> {
        let mut writer = Self {
            config,
            clock,
            last_end,
            signals,
            on_flush,
            file: None,
            restored: false,
            failing: None,
        };
        match writer.open() {
            Ok(()) => {}
            Err(Trouble::Newer(error)) => return Err(error),
            Err(trouble) => writer.fail(&trouble.to_string()),
        }
        Ok(writer)
    }

    /// Runs until the channel is closed and everything is written.
    pub(super) fn run(mut self, inbox: &Receiver<Unwritten>) {
        let mut group = Vec::new();
        loop {
            let mut cost = 0;
            let mut take = |Unwritten { batch, cost: its }: Unwritten| {
                cost += its;
                batch
            };
            let erasure = self.file.as_ref().and_then(File::erasure_due);
            let until = match &self.failing {
                None => erasure.map(|due| due.idle.min(due.latest)),
                Some(failing) => Some(failing.again),
            };
            let first = match until {
                None => inbox.recv().map_err(|_| RecvTimeoutError::Disconnected),
                Some(until) => inbox.recv_timeout(until.saturating_duration_since(Instant::now())),
            };
            match first {
                Ok(unwritten) => group.push(take(unwritten)),
                Err(RecvTimeoutError::Timeout) => {
                    match &mut self.file {
                        Some(file) if self.failing.is_none() => file.erase(),
                        _ => self.try_again(),
                    }
                    continue;
                }
                Err(RecvTimeoutError::Disconnected) => break,
            }
            while group.len() < MAX_BATCHES_PER_COMMIT
                && let Ok(unwritten) = inbox.try_recv()
            {
                group.push(take(unwritten));
            }
            self.take(&mut group);
            self.signals.unwritten.fetch_sub(cost, Ordering::Relaxed);
            self.erase_if_late();
        }
        if let Some(file) = self.file.take() {
            file.close();
        }
    }

    /// Erases deleted pictures where the store was never idle since they were deleted.
    fn erase_if_late(&mut self) {
        if self.failing.is_none()
            && let Some(file) = &mut self.file
            && file.erasure_due().is_some_and(|due| due.latest <= Instant::now())
        {
            file.erase();
        }
    }

    fn take(&mut self, group: &mut Vec<Batch>) {
        if self.failing.is_some() {
            // Only the complete state counts, which comes when it was requested.
            let whole = group.iter().rposition(|batch| batch.replaces);
            let rest = whole.map_or(group.len(), |whole| whole);
            for batch in group.drain(..rest) {
                self.refuse(batch);
            }
            if group.is_empty() {
                return;
            }
        }
        let Some(last) = group.last().map(|batch| batch.number) else {
            return;
        };
        let Some(file) = &mut self.file else {
            self.reopen_after(group, "it is not open");
            return;
        };
        match file.write(group) {
            Ok(flush) => {
                if self.failing.take().is_some() {
                    tracing::info!("the store takes writes again");
                }
                self.signals.health.send_modify(|health| {
                    health.failing = None;
                    health.bytes = flush.bytes;
                    if let Some(took) = flush.took {
                        health.flushes += 1;
                        health.last_flush = took;
                    }
                });
                if let Some(took) = flush.took {
                    (self.on_flush)(took);
                }
                self.signals.committed.send_replace(last);
                self.signals.news.notify_one();
                for batch in group.drain(..) {
                    if let Some(waiting) = batch.waiting {
                        let _ = waiting.send(Ok(()));
                    }
                }
            }
            Err(trouble) => {
                let reason = trouble.to_string();
                if let Trouble::Damaged(_) = trouble {
                    // The ledger holds its content: a new file takes it.
                    self.file = None;
                    match File::replace_damaged(&self.config, &self.clock) {
                        Ok(file) => self.file = Some(file),
                        Err(error) => tracing::error!(%error, "the damaged store can't be replaced"),
                    }
                }
                self.reopen_after(group, &reason);
            }
        }
    }

    fn reopen_after(&mut self, group: &mut Vec<Batch>, reason: &str) {
        self.fail(reason);
        for batch in group.drain(..) {
            self.refuse(batch);
        }
    }

    /// Reports to the waiting task that the batch is not stored.
    fn refuse(&self, batch: Batch) {
        let reason = self.failing.as_ref().map(|failing| failing.reason.clone());
        if let Some(waiting) = batch.waiting {
            let answer = if self.config.memory_fallback {
                Ok(())
            } else {
                Err(Unstored(reason.unwrap_or_default()))
            };
            let _ = waiting.send(answer);
        }
        if self.config.memory_fallback {
            self.signals.committed.send_replace(batch.number);
            self.signals.news.notify_one();
        }
    }

    fn fail(&mut self, reason: &str) {
        if self
            .failing
            .as_ref()
            .is_none_or(|failing| failing.reason != reason)
        {
            tracing::error!(
                folder = %self.config.folder.display(),
                reason,
                "the store fails; new requests are refused until it works again"
            );
        }
        self.failing = Some(Failing {
            reason: reason.to_owned(),
            again: Instant::now() + RETRY_INTERVAL,
            asked: false,
        });
        self.signals
            .health
            .send_modify(|health| health.failing = Some(reason.to_owned()));
        self.signals.news.notify_one();
    }

    fn try_again(&mut self) {
        let Some(failing) = &mut self.failing else { return };
        failing.again = Instant::now() + RETRY_INTERVAL;
        if failing.asked {
            // The service is slow to answer, or gone.
            return;
        }
        let mut probe = || match &mut self.file {
            Some(file) => file.probe(),
            None => self.open(),
        };
        match probe() {
            Ok(()) => {
                if let Some(failing) = &mut self.failing {
                    failing.asked = true;
                }
                self.signals.refill.send_modify(|count| *count += 1);
                self.signals.news.notify_one();
            }
            Err(trouble) => {
                let reason = trouble.to_string();
                if !trouble.is_full() {
                    // After an I/O error a connection's view of the file is not to be trusted.
                    self.file = None;
                }
                self.fail(&reason);
            }
        }
    }

    /// Opens the file; the first success publishes the state that an earlier process left.
    fn open(&mut self) -> Result<(), Trouble> {
        let (file, restored) = File::open(&self.config, &self.clock, self.last_end)?;
        if !self.restored {
            self.restored = true;
            self.report_restored(restored);
        }
        self.signals
            .health
            .send_modify(|health| health.bytes = file.bytes());
        self.file = Some(file);
        Ok(())
    }

    fn report_restored(&self, restored: Restored) {
        *self.signals.restored.lock() = Some(restored);
        self.signals.news.notify_one();
    }
}
