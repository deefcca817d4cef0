//! The quotas and sessions of clients.

use std::time::Duration;

use phi_edge_engine::{Symbol, TokenId};
use tokio::time::Instant;

use super::Limits;
use crate::jobs::known_images::KnownImage;
use crate::jobs::quota::Quotas;
use crate::jobs::sessions::{Occupied, SessionSoFar, Sessions};
use phi_edge_api::JobKey;

/// The budgets that clients have used, and the conversations that they hold.
///
/// A job charges its budget and reserves its session until [`ClientAccounts::release`].
#[derive(Debug)]
pub(super) struct ClientAccounts {
    quotas: Quotas,
    sessions: Sessions,
}

impl ClientAccounts {
    pub(super) fn new(limits: &Limits) -> Self {
        Self {
            quotas: Quotas::new(limits.quota),
            sessions: Sessions::new(limits.session_ttl, limits.session_memory),
        }
    }

    /// Replaces the bounds; sessions that exceed them end with the next change.
    pub(super) fn set_limits(&mut self, limits: &Limits) {
        self.sessions
            .set_bounds(limits.session_ttl, limits.session_memory);
        self.quotas.set(limits.quota);
    }

    /// Takes one request of a client's budget.
    ///
    /// # Errors
    /// The budget is used up: the time until it has room, and the configuration key of its limit.
    pub(super) fn admit(&mut self, key: &JobKey, now: Instant) -> Result<(), (Duration, &'static str)> {
        self.quotas.enter(key.client.as_ref(), now)
    }

    /// Reserves the session of a job, if it has one; returns the conversation so far.
    ///
    /// # Errors
    /// Another job has reserved the session.
    pub(super) fn reserve_session(
        &mut self,
        key: &JobKey,
        session: Option<&str>,
        now: Instant,
    ) -> Result<SessionSoFar, Occupied> {
        match session {
            Some(session) => self.sessions.begin(key, session, now),
            None => Ok(SessionSoFar::default()),
        }
    }

    /// Sets the prompt of a job in its session.
    pub(super) fn set_prompt(&mut self, key: &JobKey, session: Option<&str>, prompt: &[Symbol]) {
        if let Some(session) = session {
            self.sessions.asked(key, session, prompt);
        }
    }

    /// Charges the most tokens that an accepted job can use.
    pub(super) fn charge(&mut self, key: &JobKey, tokens: i64, now: Instant) {
        self.quotas.charge(key.client.as_ref(), tokens, now);
    }

    /// Appends an answer to the session of its job, which is free again.
    ///
    /// `images`: those that the job's prompt names.
    pub(super) fn record_answer(
        &mut self,
        key: &JobKey,
        session: &str,
        answer: &[TokenId],
        images: Vec<KnownImage>,
        now: Instant,
    ) {
        self.sessions.answered(key, session, Some((answer, images)), now);
    }

    /// Ends the reservations of a job: gives back the tokens that it was charged and did not use, and frees its session
    /// unless an answer has done so.
    pub(super) fn release(
        &mut self,
        key: &JobKey,
        unused_tokens: Option<i64>,
        session: Option<&str>,
        now: Instant,
    ) {
        if let Some(tokens) = unused_tokens {
            self.quotas.charge(key.client.as_ref(), -tokens, now);
        }
        if let Some(session) = session {
            self.sessions.answered(key, session, None, now);
        }
    }

    /// Forgets sessions that were idle for long enough.
    pub(super) fn expire(&mut self, now: Instant) {
        self.sessions.expire(now);
    }

    /// The time at which [`ClientAccounts::expire`] has something to do next.
    pub(super) fn next_expiry(&self) -> Option<Instant> {
        self.sessions.next_expiry()
    }
}
