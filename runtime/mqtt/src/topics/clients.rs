//! The names of clients that have asked on topics of their own.

use std::collections::{HashSet, VecDeque};

/// The most names; beyond them the one that was noted first is forgotten.
const MAX_NAMES: usize = 16_384;

/// The names of clients that have sent a request or a cancellation on a topic of their own.
#[derive(Debug, Default)]
pub(crate) struct KnownClients {
    names: HashSet<String>,
    order: VecDeque<String>,
}

impl KnownClients {
    /// Remembers a name.
    pub(crate) fn note(&mut self, name: &str) {
        if self.names.contains(name) {
            return;
        }
        if self.order.len() >= MAX_NAMES
            && let Some(oldest) = self.order.pop_front()
        {
            self.names.remove(&oldest);
        }
        self.names.insert(name.to_owned());
        self.order.push_back(name.to_owned());
    }

    /// Whether a client of this name is known.
    pub(crate) fn contains(&self, name: &str) -> bool {
        self.names.contains(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_bounded_and_the_oldest_goes() {
        let mut known = KnownClients::default();
        for n in 0..=MAX_NAMES {
            known.note(&n.to_string());
            known.note("1");
        }
        assert!(!known.contains("0") && known.contains("1") && known.contains(&MAX_NAMES.to_string()));
        assert_eq!((known.names.len(), known.order.len()), (MAX_NAMES, MAX_NAMES));
    }
}
