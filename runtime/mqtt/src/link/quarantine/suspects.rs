//! The suspects: messages that were in flight when a connection ended.

use std::collections::VecDeque;

use super::Publication;

/// A message that may end connections.
#[derive(Debug, Clone)]
pub(super) struct Suspect<M> {
    pub(super) message: M,
    /// The number of connections that ended while it was in flight.
    pub(super) deaths: u32,
    /// The number of those on which it was alone and that a clean verification followed.
    pub(super) alone: u32,
    /// Whether it is the node's full status.
    pub(super) is_status: bool,
}

impl<M> Suspect<M> {
    pub(super) fn new(message: M, deaths: u32) -> Self {
        Self {
            message,
            deaths,
            alone: 0,
            is_status: false,
        }
    }
}

/// The suspects, in the order of their messages.
#[derive(Debug)]
pub(super) struct Suspects<M>(VecDeque<Suspect<M>>);

impl<M: Publication> Suspects<M> {
    pub(super) fn new() -> Self {
        Self(VecDeque::new())
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Adds a suspect behind the others. It replaces an earlier one where only the latest is of use.
    pub(super) fn add(&mut self, suspect: Suspect<M>) {
        if suspect.message.is_latest_only()
            && let Some(known) = self.find(suspect.message.destination())
        {
            known.message = suspect.message;
            return;
        }
        self.0.push_back(suspect);
    }

    /// Puts a suspect back that was on trial, before all others.
    pub(super) fn put_back(&mut self, suspect: Suspect<M>) {
        if suspect.message.is_latest_only() && self.find(suspect.message.destination()).is_some() {
            // A later message has replaced it meanwhile.
            return;
        }
        self.0.push_front(suspect);
    }

    fn find(&mut self, destination: u64) -> Option<&mut Suspect<M>> {
        let mut suspects = self.0.iter_mut();
        suspects.find(|suspect| suspect.message.destination() == destination && !suspect.is_status)
    }

    pub(super) fn is_suspected(&self, destination: u64) -> bool {
        self.0
            .iter()
            .any(|suspect| suspect.message.destination() == destination)
    }

    pub(super) fn remove_status(&mut self) {
        self.0.retain(|suspect| !suspect.is_status);
    }

    /// Removes and returns the messages that can't be published.
    pub(super) fn sift(&mut self, can_be: impl Fn(&M) -> bool) -> Vec<M> {
        let mut out = Vec::new();
        for suspect in std::mem::take(&mut self.0) {
            if suspect.is_status || can_be(&suspect.message) {
                self.0.push_back(suspect);
            } else {
                out.push(suspect.message);
            }
        }
        out
    }

    /// Forgets the verified deaths of all suspects.
    pub(super) fn void(&mut self) {
        for suspect in &mut self.0 {
            suspect.alone = 0;
        }
    }

    /// Takes the suspect for the next trial: the one with the most verified deaths, else the first. Messages to one
    /// destination keep their order.
    pub(super) fn next(&mut self) -> Option<Suspect<M>> {
        let mut best: Option<(usize, u32)> = None;
        for (at, suspect) in self.0.iter().enumerate() {
            let is_first = || {
                let destination = suspect.message.destination();
                let mut earlier = self.0.iter().take(at);
                earlier.all(|earlier| earlier.message.destination() != destination)
            };
            if best.is_none_or(|(_, most)| suspect.alone > most) && is_first() {
                best = Some((at, suspect.alone));
            }
        }
        self.0.remove(best?.0)
    }
}
