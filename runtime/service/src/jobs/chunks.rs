//! The chunks of a streamed answer.

use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::jobs::ledger::Start;
use phi_edge_api::{JobKey, ReplyAddress};
use phi_edge_api::{Reply, ReplyBody};

/// The chunks of one answer: its text is collected and sent at intervals, the first piece at once.
///
/// Sending never waits: where the channel has no room, the text stays and goes with the next chunk. Text that never
/// finds room is in the final reply.
pub(crate) struct Chunks {
    key: JobKey,
    address: ReplyAddress,
    attempt: u32,
    replies: mpsc::Sender<Reply>,
    interval: Duration,
    pending: String,
    not_before: Option<Instant>,
    seq: u32,
}

impl Chunks {
    pub(crate) fn new(start: &Start, replies: mpsc::Sender<Reply>, interval: Duration) -> Self {
        Self {
            key: start.job.key.clone(),
            address: start.job.reply.clone(),
            attempt: start.attempt,
            replies,
            interval,
            pending: String::new(),
            not_before: None,
            seq: 0,
        }
    }

    pub(crate) fn push(&mut self, delta: &str) {
        self.pending.push_str(delta);
    }

    /// Returns the time at which [`Chunks::send_due`] sends next.
    pub(crate) fn due(&self, now: Instant) -> Option<Instant> {
        (!self.pending.is_empty()).then(|| self.not_before.unwrap_or(now))
    }

    pub(crate) fn send_due(&mut self, now: Instant) {
        if self.due(now).is_some_and(|due| due <= now) {
            self.not_before = Some(now + self.interval);
            self.send();
        }
    }

    /// Sends the rest of the text.
    pub(crate) fn flush(&mut self) {
        if !self.pending.is_empty() {
            self.send();
        }
    }

    fn send(&mut self) {
        // Full or closed: the text stays, and the final reply has all of it.
        let Ok(permit) = self.replies.try_reserve() else {
            return;
        };
        permit.send(Reply {
            key: self.key.clone(),
            address: self.address.clone(),
            body: ReplyBody::Chunk {
                attempt: self.attempt,
                seq: self.seq,
                delta: std::mem::take(&mut self.pending),
            },
            delivery: None,
        });
        self.seq += 1;
    }
}
