//! A bounded memory of destinations.

use std::collections::VecDeque;

/// The destinations noted last; a new one beyond the bound replaces the oldest.
#[derive(Debug)]
pub(super) struct RecentDestinations {
    capacity: usize,
    noted: VecDeque<u64>,
}

impl RecentDestinations {
    pub(super) fn new(capacity: usize) -> Self {
        Self {
            capacity,
            noted: VecDeque::new(),
        }
    }

    pub(super) fn contains(&self, destination: u64) -> bool {
        self.noted.contains(&destination)
    }

    pub(super) fn note(&mut self, destination: u64) {
        self.forget(destination);
        if self.noted.len() >= self.capacity {
            self.noted.pop_front();
        }
        self.noted.push_back(destination);
    }

    pub(super) fn forget(&mut self, destination: u64) {
        self.noted.retain(|noted| *noted != destination);
    }
}
