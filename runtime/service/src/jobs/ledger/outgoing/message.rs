//! A message on its way to the broker.

use std::time::Duration;

use phi_edge_api::{Reply, ReplyBody};
use phi_edge_rules::Time;

/// A message that waits for its batch of the journal to be safe, and for the link to take it.
#[derive(Debug)]
pub(super) struct Outgoing {
    /// The number of the batch.
    pub(super) safe_with: u64,
    pub(super) place: MessagePlace,
    /// Facts about an event.
    pub(super) event: Option<EventMark>,
    /// Bytes of a refusal that the limit of refusals counts.
    pub(super) refusal_bytes: u64,
}

/// Where the message is.
#[derive(Debug)]
pub(super) enum MessagePlace {
    /// Among those that the broker has not acknowledged, by its delivery.
    Kept(u64),
    /// Here: nothing is kept of it when it has left.
    Unkept(Box<Reply>),
}

/// A message that is kept until the broker has it.
#[derive(Debug)]
pub(super) struct Undelivered {
    pub(super) reply: Reply,
    /// When it was handed on: the expiry of an event counts from then.
    pub(super) since: Time,
}

/// Facts about an event that waits.
#[derive(Debug)]
pub(super) struct EventMark {
    pub(super) bytes: u64,
    pub(super) since: Time,
    expiry: Option<Duration>,
    pub(super) retained: bool,
}

impl Undelivered {
    /// The message; of an event, with what is left of its expiry.
    pub(super) fn left(&self, wall: Time) -> Reply {
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
    /// The facts of `reply`, handed on at `since`; `None` if it is no event.
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
