//! The control publishes: the node's status in full, or in its minimal form where the full one is suspect.

use super::Publication;

/// The standing of the full status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    /// It was not acknowledged yet, and no connection ended while it was in flight.
    Untried,
    /// The broker has acknowledged it.
    Proven,
    /// A connection ended while it was in flight.
    Suspect,
    /// It ends connections.
    Convicted,
}

/// Both forms of the status and the standing of the full one.
#[derive(Debug)]
pub(super) struct Controls<M> {
    full: M,
    minimal: M,
    standing: Standing,
    /// Whether the retained status differs from the one set.
    pub(super) is_due: bool,
}

impl<M: Publication> Controls<M> {
    pub(super) fn new(full: M, minimal: M) -> Self {
        Self {
            full,
            minimal,
            standing: Standing::Untried,
            is_due: true,
        }
    }

    /// Sets the status; true if it differs from the one before.
    pub(super) fn set(&mut self, full: M, minimal: M) -> bool {
        self.is_due = true;
        if full.is_same(&self.full) {
            return false;
        }
        *self = Self::new(full, minimal);
        true
    }

    /// Whether this message is the current full status.
    pub(super) fn is_full(&self, message: &M) -> bool {
        message.is_same(&self.full)
    }

    /// Returns the message to publish as the control.
    pub(super) fn message(&self) -> M {
        match self.standing {
            Standing::Untried | Standing::Proven => self.full.clone(),
            Standing::Suspect | Standing::Convicted => self.minimal.clone(),
        }
    }

    /// Notes that the broker has acknowledged this status.
    pub(super) fn acknowledged(&mut self, message: &M) {
        if message.is_same(&self.full) {
            self.standing = Standing::Proven;
        }
    }

    /// Notes that a connection ended while this status was in flight. Returns the full status if that makes it a suspect.
    pub(super) fn died(&mut self, message: &M) -> Option<M> {
        self.is_due = true;
        if self.standing == Standing::Untried && message.is_same(&self.full) {
            self.standing = Standing::Suspect;
            return Some(self.full.clone());
        }
        None
    }

    /// Notes that the full status is convicted.
    pub(super) fn convicted(&mut self, message: &M) {
        self.give_up_full(message);
    }

    /// Replaces the full status by the minimal one; false if this message is not the full one, or it is replaced already.
    pub(super) fn give_up_full(&mut self, message: &M) -> bool {
        if !message.is_same(&self.full)
            || self.full.is_same(&self.minimal)
            || self.standing == Standing::Convicted
        {
            return false;
        }
        self.standing = Standing::Convicted;
        self.is_due = true;
        true
    }
}
