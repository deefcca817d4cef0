//! The messages of a rule's open windows.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::changes::KeptMessage;
use crate::picture;
use crate::window::ClosedWindow;

/// The messages of a rule's open windows, by group and number.
#[derive(Debug, Default)]
pub(super) struct KeptMessages {
    by_group: HashMap<String, BTreeMap<u64, KeptMessage>>,
    /// The numbers of those that are pictures with their content, by group.
    pictures: HashMap<String, BTreeSet<u64>>,
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
        if let Some(pictures) = self.pictures.get_mut(&closed.group) {
            pictures.retain(|seq| !closed.forget.iter().any(|range| range.contains(seq)));
            if pictures.is_empty() {
                self.pictures.remove(&closed.group);
            }
        }
        self.count -= removed.len();
        self.bytes -= removed.iter().map(KeptMessage::cost).sum::<u64>();
        removed
    }

    /// Inserts a message of a rule that takes pictures. Its payload is a picture, or what is kept of one without its content.
    pub(super) fn insert_picture(&mut self, message: KeptMessage) {
        if picture::format_of(&message.payload).is_some() {
            let group = self.pictures.entry(message.group.clone()).or_default();
            group.insert(message.seq);
        }
        self.insert(message);
    }

    /// Whether a message is a picture with its content.
    pub(super) fn is_picture(&self, group: &str, seq: u64) -> bool {
        let pictures = self.pictures.get(group);
        pictures.is_some_and(|pictures| pictures.contains(&seq))
    }

    /// Leaves out the content of a group's pictures but those in `shown`. Returns the messages as they are then.
    pub(super) fn leave_out_content(&mut self, group: &str, shown: &[u64]) -> Vec<KeptMessage> {
        let (Some(messages), Some(pictures)) = (self.by_group.get_mut(group), self.pictures.get_mut(group))
        else {
            return Vec::new();
        };
        let left_out: Vec<u64> = pictures
            .iter()
            .copied()
            .filter(|seq| !shown.contains(seq))
            .collect();
        let mut changed = Vec::with_capacity(left_out.len());
        for seq in left_out {
            pictures.remove(&seq);
            if let Some(message) = messages.get_mut(&seq) {
                self.bytes -= message.cost();
                message.payload = picture::without_content(&message.payload);
                self.bytes += message.cost();
                changed.push(message.clone());
            }
        }
        changed
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
