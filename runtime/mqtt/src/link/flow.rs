//! Flow control: a bound on the bytes of messages that are received and not acknowledged.
//!
//! The receive maximum bounds the number of messages, each of which may be as large as a packet, and not every broker keeps to
//! it: mosquitto sends everything in flight again when a session resumes. So messages beyond the bound are dropped without an
//! acknowledgement, and so are all later ones of the connection, since order counts. The broker sends no more than it may have
//! in flight, while replies, acknowledgements and pings go on: a reader that simply stopped would also stop the
//! acknowledgements of its own replies, and would seem dead while a model loads. Once the inbox has room the link reconnects,
//! and the broker sends the dropped messages again, in order.

use std::sync::Arc;

use rumqttc::{Publish, QoS};
use tokio::sync::watch;

use super::counters::{Counters, count_of};

/// The most bytes of messages that wait to be acknowledged, unless two of the largest packets are more.
const MAX_UNACKNOWLEDGED_BYTES: u64 = 64 << 20;

/// The bytes that a message counts for beside its payload.
const MESSAGE_OVERHEAD_BYTES: u64 = 512;

/// The poller's account of the bytes in the inbox.
#[derive(Debug)]
pub(crate) struct FlowControl {
    counters: Arc<Counters>,
    held: watch::Receiver<u64>,
    limit: u64,
    /// Whether messages of this connection are left to the broker.
    is_deferring: bool,
}

/// Returns the bytes that a message counts for while it waits.
pub(crate) fn size(publish: &Publish) -> u64 {
    MESSAGE_OVERHEAD_BYTES + publish.payload.len() as u64
}

impl FlowControl {
    pub(crate) fn new(counters: Arc<Counters>, max_packet: u32) -> Self {
        let held = counters.held.subscribe();
        Self {
            counters,
            held,
            limit: MAX_UNACKNOWLEDGED_BYTES.max(2 * u64::from(max_packet)),
            is_deferring: false,
        }
    }

    #[cfg(test)]
    pub(crate) fn bounded(counters: Arc<Counters>, limit: u64) -> Self {
        Self {
            limit,
            ..Self::new(counters, 0)
        }
    }

    /// Whether a message is handed to the inbox; if so, it counts until it is acknowledged.
    pub(crate) fn accepts(&mut self, publish: &Publish) -> bool {
        if publish.qos == QoS::AtMostOnce {
            return true;
        }
        let size = size(publish);
        let held = *self.held.borrow();
        // A message that is larger than the bound is accepted alone.
        if !self.is_deferring && (held == 0 || held + size <= self.limit) {
            self.counters.held.send_modify(|held| *held += size);
            return true;
        }
        if !std::mem::replace(&mut self.is_deferring, true) {
            tracing::warn!(
                bytes = held,
                "messages are left to the broker for a while: too many wait to be dealt with"
            );
        }
        count_of(&self.counters.deferred);
        false
    }

    /// Whether messages were left to the broker, which a new connection brings again.
    pub(crate) fn is_deferring(&self) -> bool {
        self.is_deferring
    }

    /// Resolves when there is room again. Cancel safe.
    pub(crate) async fn wait_for_room(&mut self) {
        let low_mark = self.limit / 4;
        if self.held.wait_for(|held| *held <= low_mark).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Begins a new connection, on which the broker sends again what is not acknowledged.
    pub(crate) fn reset(&mut self) {
        self.is_deferring = false;
    }
}

#[cfg(test)]
mod tests;
