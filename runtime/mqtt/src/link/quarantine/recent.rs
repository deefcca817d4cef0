//! A bounded memory of destinations.

use std::collections::VecDeque;

/// The destinations noted last; the oldest is forgotten for a new one.
#[derive(Debug)]
pub(super) struct RecentDestinations {
    most: usize,
    noted: VecDeque<u64>,
}

impl RecentDestinations {
    pub(super) fn new(most: usize) -> Self {
        Self {
            most,
            noted: VecDeque::new(),
        }
    }

    pub(super) fn contains(&self, destination: u64) -> bool {
        self.noted.contains(&destination)
    }

    pub(super) fn note(&mut self, destination: u64) {
        self.forget(destination);
        if self.noted.len() >= self.most {
            self.noted.pop_front();
        }
        self.noted.push_back(destination);
    }

    pub(super) fn forget(&mut self, destination: u64) {
        self.noted.retain(|noted| *noted != destination);
    }
}
