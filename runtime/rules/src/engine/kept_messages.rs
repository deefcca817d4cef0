//! The messages of a rule's open windows.

use std::collections::{BTreeMap, HashMap};

use crate::changes::KeptMessage;
use crate::window::ClosedWindow;

/// The messages of a rule's open windows, by group and number.
#[derive(Debug, Default)]
pub(super) struct KeptMessages {
    by_group: HashMap<String, BTreeMap<u64, KeptMessage>>,
    count: usize,
    /// Their cost in the store.
    bytes: u64,
}

impl KeptMessages {
    pub(super) fn insert(&mut self, message: KeptMessage) {
        self.count += 1;
        self.bytes += message.cost();
        let group = self.by_group.entry(message.group.clone()).or_default();
        group.insert(message.seq, message);
    }

    /// Removes the messages that no open window needs after `closed`.
    pub(super) fn remove(&mut self, closed: &ClosedWindow) -> Vec<KeptMessage> {
        let Some(group) = self.by_group.get_mut(&closed.group) else {
            return Vec::new();
        };
        let mut removed = Vec::new();
        for range in &closed.forget {
            let mut tail = group.split_off(range.start());
            let mut beyond = tail.split_off(&range.end().saturating_add(1));
            removed.extend(tail.into_values());
            group.append(&mut beyond);
        }
        if group.is_empty() {
            self.by_group.remove(&closed.group);
        }
        self.count -= removed.len();
        self.bytes -= removed.iter().map(KeptMessage::cost).sum::<u64>();
        removed
    }

    /// The messages of a group, by number.
    pub(super) fn of_group(&self, group: &str) -> Option<&BTreeMap<u64, KeptMessage>> {
        self.by_group.get(group)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &KeptMessage> {
        self.by_group.values().flat_map(BTreeMap::values)
    }

    pub(super) fn len(&self) -> usize {
        self.count
    }

    /// Their cost in the store, in bytes.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }
}
