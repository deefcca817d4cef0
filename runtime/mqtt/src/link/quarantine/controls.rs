//! The node's status, which is the control publish: full, or in its minimal form where the full one is suspect.

use super::Publication;

/// What is known of the full status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    /// It was not acknowledged yet, and no connection ended at it.
    Untried,
    /// The broker has acknowledged it.
    Proven,
    /// A connection ended while it was under way.
    Suspect,
    /// It ends connections.
    Convicted,
}

/// Both forms of the status.
#[derive(Debug)]
pub(super) struct Controls<M> {
    full: M,
    minimal: M,
    standing: Standing,
    /// The retained status is another than it should be.
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

    /// States the status; true if it is another than before.
    pub(super) fn set(&mut self, full: M, minimal: M) -> bool {
        self.is_due = true;
        if full.is_same(&self.full) {
            return false;
        }
        *self = Self::new(full, minimal);
        true
    }

    /// Whether this is the full status still.
    pub(super) fn is_full(&self, message: &M) -> bool {
        message.is_same(&self.full)
    }

    /// What is published as the control.
    pub(super) fn message(&self) -> M {
        match self.standing {
            Standing::Untried | Standing::Proven => self.full.clone(),
            Standing::Suspect | Standing::Convicted => self.minimal.clone(),
        }
    }

    /// The broker has acknowledged this status.
    pub(super) fn acknowledged(&mut self, message: &M) {
        if message.is_same(&self.full) {
            self.standing = Standing::Proven;
        }
    }

    /// A connection ended while this status was under way: the full one, if that makes it a suspect.
    pub(super) fn died(&mut self, message: &M) -> Option<M> {
        self.is_due = true;
        if self.standing == Standing::Untried && message.is_same(&self.full) {
            self.standing = Standing::Suspect;
            return Some(self.full.clone());
        }
        None
    }

    /// The full status ends connections.
    pub(super) fn convicted(&mut self, message: &M) {
        self.give_up_full(message);
    }

    /// Publishes the minimal status in place of this one; false if it is the minimal one itself.
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
