//! The counters of the link, for stats and metrics.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use serde::Serialize;
use tokio::sync::watch;

use super::liveness::Heartbeat;

/// The counters since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct LinkCounters {
    /// Messages that arrived.
    pub received: u64,
    /// Messages with an empty payload.
    pub ignored: u64,
    /// Requests that were refused.
    pub refused: u64,
    /// Requests without an id or a response topic by which their sender could be told.
    pub unanswerable: u64,
    /// Replies that the broker has acknowledged.
    pub published: u64,
    /// Events that the broker has acknowledged.
    pub events: u64,
    /// Chunks that were not sent: the link was down.
    pub chunks_dropped: u64,
    /// Messages sent to the dead-letter topic.
    pub dead_letters: u64,
    /// Messages that can't be delivered: their topic is invalid, or they ended each connection that they were tried on.
    pub undeliverable: u64,
    /// Connections made.
    pub connections: u64,
    /// QoS 0 messages that were dropped: too many waited.
    pub qos0_dropped: u64,
    /// Messages that were left to the broker for a while: too many waited to be acknowledged.
    pub deferred: u64,
}

/// The counters that the link's tasks share.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) received: AtomicU64,
    pub(crate) ignored: AtomicU64,
    pub(crate) refused: AtomicU64,
    pub(crate) unanswerable: AtomicU64,
    pub(crate) published: AtomicU64,
    pub(crate) events: AtomicU64,
    pub(crate) chunks_dropped: AtomicU64,
    pub(crate) dead_letters: AtomicU64,
    pub(crate) undeliverable: AtomicU64,
    pub(crate) connections: AtomicU64,
    /// Bytes of QoS 0 messages between poller and inbox, which the receive maximum does not bound.
    pub(crate) qos0_waiting: AtomicU64,
    pub(crate) qos0_dropped: AtomicU64,
    pub(crate) deferred: AtomicU64,
    /// Bytes of messages that were handed to the inbox and are not acknowledged, QoS 0 aside.
    pub(crate) held: watch::Sender<u64>,
    /// Messages that were handed to the inbox.
    pub(crate) handed_on: AtomicU64,
    /// Messages that the inbox has handled.
    pub(crate) dealt_with: watch::Sender<u64>,
    /// Whether the broker may give the node requests of its pool.
    pub(crate) in_pool: watch::Sender<bool>,
    /// Connections in a row that ended soon after they were made.
    pub(crate) short_connections: watch::Sender<u32>,
    /// Packets that the broker has not answered.
    unanswered: AtomicUsize,
    pub(crate) heartbeat: Arc<Heartbeat>,
}

impl Counters {
    /// Sets the number of packets that the broker has to answer.
    pub(crate) fn answers_due(&self, messages: usize) {
        self.unanswered.store(messages, Ordering::Relaxed);
    }

    /// Whether the broker owes an answer.
    pub(crate) fn is_answer_due(&self) -> bool {
        self.unanswered.load(Ordering::Relaxed) > 0
    }

    pub(crate) fn read(&self) -> LinkCounters {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        LinkCounters {
            received: get(&self.received),
            ignored: get(&self.ignored),
            refused: get(&self.refused),
            unanswerable: get(&self.unanswerable),
            published: get(&self.published),
            events: get(&self.events),
            chunks_dropped: get(&self.chunks_dropped),
            dead_letters: get(&self.dead_letters),
            undeliverable: get(&self.undeliverable),
            connections: get(&self.connections),
            qos0_dropped: get(&self.qos0_dropped),
            deferred: get(&self.deferred),
        }
    }
}

/// Counts one more and returns the number before.
pub(crate) fn count_of(counter: &AtomicU64) -> u64 {
    counter.fetch_add(1, Ordering::Relaxed)
}

/// Counts one more.
pub(crate) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// A reader of the counters that does not hold the link.
#[derive(Debug, Clone)]
pub struct CounterReader(pub(crate) Arc<Counters>);

impl CounterReader {
    /// Returns the counters now.
    pub fn read(&self) -> LinkCounters {
        self.0.read()
    }
}
