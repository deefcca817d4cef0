//! A bound on what was received and is not dealt with, in bytes.
//!
//! The receive maximum bounds a number of messages, of which each may be as large as a packet, and not every broker keeps to
//! it: mosquitto sends all that is under way again when a session resumes. So what is beyond the bound is not kept: it is
//! not acknowledged either, and nothing more of this connection is taken, since order counts. The broker sends no more than
//! it may have under way, while replies, acknowledgements and signs of life go on as ever: a reader that simply stopped
//! would keep out the acknowledgements that its own replies wait for, and would seem dead while a model loads. Once the
//! inbox has room the link reconnects, and the broker sends again what was left to it, in order.

use std::sync::Arc;

use rumqttc::{Publish, QoS};
use tokio::sync::watch;

use super::counters::{Counters, count_of};

/// Bytes of messages that may wait to be dealt with, or two of the largest packets.
const MAX_UNACKNOWLEDGED_BYTES: u64 = 64 << 20;

/// What a message counts for beyond its payload.
const MESSAGE_OVERHEAD_BYTES: u64 = 512;

/// The poller's account of the inbox.
#[derive(Debug)]
pub(crate) struct FlowControl {
    counters: Arc<Counters>,
    held: watch::Receiver<u64>,
    limit: u64,
    /// Whether messages of this connection were left to the broker.
    is_deferring: bool,
}

/// What a message counts for while it waits.
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

    /// Whether a message is to be handed on; if so, it counts until the inbox has dealt with it.
    pub(crate) fn accepts(&mut self, publish: &Publish) -> bool {
        if publish.qos == QoS::AtMostOnce {
            return true;
        }
        let size = size(publish);
        let held = *self.held.borrow();
        // A message that is larger than the bound is taken alone.
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

    /// Whether the broker is to be asked again for what was left to it.
    pub(crate) fn is_deferring(&self) -> bool {
        self.is_deferring
    }

    /// Ends when there is room again. Nothing is lost if it is not waited for to the end.
    pub(crate) async fn wait_for_room(&mut self) {
        let enough = self.limit / 4;
        if self.held.wait_for(|held| *held <= enough).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// The connection is another: the broker sends again what it has no acknowledgement of.
    pub(crate) fn reset(&mut self) {
        self.is_deferring = false;
    }
}

#[cfg(test)]
mod tests;
