//! The chunks of an answer: its text as it grows, and the progress of its prompt.

use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::jobs::ledger::Start;
use phi_edge_api::{JobKey, ReplyAddress};
use phi_edge_api::{PromptProgress, Reply, ReplyBody};

/// The chunks of one answer: its text is collected and sent at intervals, the first piece at once. Before that, the progress
/// of its prompt is.
///
/// Sending never waits: where the channel has no room, the text stays and goes with the next chunk. Text that never
/// finds room is in the final reply. Progress that text has overtaken is not sent.
pub(crate) struct Chunks {
    key: JobKey,
    address: ReplyAddress,
    attempt: u32,
    replies: mpsc::Sender<Reply>,
    interval: Duration,
    wants_text: bool,
    wants_progress: bool,
    pending: String,
    /// The newest progress that is not sent.
    progress: Option<PromptProgress>,
    not_before: Option<Instant>,
    seq: u32,
}

impl Chunks {
    /// The chunks of a job; `None` where it has none. They are sent to a topic only: what is held for pick-up is the
    /// outcome.
    pub(crate) fn of(start: &Start, replies: mpsc::Sender<Reply>, interval: Duration) -> Option<Self> {
        let (wants_text, wants_progress) = (start.job.stream, start.job.progress);
        start.job.reply.topic().filter(|_| wants_text || wants_progress)?;
        Some(Self {
            key: start.job.key.clone(),
            address: start.job.reply.clone(),
            attempt: start.attempt,
            replies,
            interval,
            wants_text,
            wants_progress,
            pending: String::new(),
            progress: None,
            not_before: None,
            seq: 0,
        })
    }

    pub(crate) fn push(&mut self, delta: &str) {
        if self.wants_text {
            self.pending.push_str(delta);
            self.progress = None;
        }
    }

    pub(crate) fn set_progress(&mut self, progress: PromptProgress) {
        if self.wants_progress {
            self.progress = Some(progress);
        }
    }

    /// Returns the time at which [`Chunks::send_due`] sends next.
    pub(crate) fn due(&self, now: Instant) -> Option<Instant> {
        self.has_pending().then(|| self.not_before.unwrap_or(now))
    }

    pub(crate) fn send_due(&mut self, now: Instant) {
        if self.due(now).is_some_and(|due| due <= now) {
            self.not_before = Some(now + self.interval);
            self.send();
        }
    }

    /// Sends the rest.
    pub(crate) fn flush(&mut self) {
        if self.has_pending() {
            self.send();
        }
    }

    fn has_pending(&self) -> bool {
        !self.pending.is_empty() || self.progress.is_some()
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
                progress: self.progress.take(),
            },
            delivery: None,
        });
        self.seq += 1;
    }
}
