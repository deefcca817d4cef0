//! A message on its way to the broker.

use std::time::Duration;

use phi_edge_api::{Reply, ReplyAddress, ReplyBody};
use phi_edge_rules::Time;

/// An entry of the queue: a message that waits until its batch of the journal is stored and the link takes it.
#[derive(Debug)]
pub(super) struct Outgoing {
    /// The number of the batch; 0 for none.
    pub(super) safe_with: u64,
    pub(super) place: MessagePlace,
    /// Facts about an event.
    pub(super) event: Option<EventMark>,
    /// The memory of a refusal or a dead letter, in bytes; 0 for other messages.
    pub(super) notice_bytes: u64,
}

/// The place where the message is kept.
#[derive(Debug)]
pub(super) enum MessagePlace {
    /// Among those that the broker has not acknowledged, by its delivery.
    Kept(u64),
    /// In the entry: it is forgotten when it has left.
    Unkept(Box<Reply>),
}

/// A message that is kept until the broker acknowledges it.
#[derive(Debug)]
pub(super) struct Undelivered {
    pub(super) reply: Reply,
    /// The time from which the expiry of an event counts.
    pub(super) since: Time,
}

/// Facts about a queued event.
#[derive(Debug)]
pub(super) struct EventMark {
    pub(super) bytes: u64,
    pub(super) since: Time,
    expiry: Option<Duration>,
    pub(super) retained: bool,
}

/// The memory of a refusal or a dead letter, in bytes.
pub(super) fn notice_bytes(address: &ReplyAddress, body: &ReplyBody) -> u64 {
    const OVERHEAD: u64 = 512;
    let content = address.topic().map_or(0, str::len) + address.correlation.as_ref().map_or(0, Vec::len);
    OVERHEAD + content as u64 + body.texts()
}

impl Undelivered {
    /// The message; the expiry of an event is what is left of it.
    pub(super) fn with_remaining_expiry(&self, wall: Time) -> Reply {
        let mut reply = self.reply.clone();
        if let ReplyBody::Event(published) = &mut reply.body
            && let Some(expiry) = &mut published.output.expiry
        {
            *expiry = expiry.saturating_sub(wall.since(self.since));
        }
        reply
    }
}

impl EventMark {
    /// The facts about `reply`, published at `since`; `None` if it is no event.
    pub(super) fn of(reply: &Reply, since: Time) -> Option<Self> {
        let ReplyBody::Event(published) = &reply.body else {
            return None;
        };
        Some(Self {
            bytes: published.cost(),
            since,
            expiry: published.output.expiry,
            retained: published.output.retain,
        })
    }

    pub(super) fn is_expired(&self, wall: Time) -> bool {
        self.expiry.is_some_and(|expiry| wall.since(self.since) >= expiry)
    }
}
