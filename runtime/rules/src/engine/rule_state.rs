//! The state of one rule.

use std::sync::Arc;

use super::dedupe::{DedupeDigest, DedupeValues};
use super::kept_messages::KeptMessages;
use crate::changes::{KeptMessage, RuleChange};
use crate::extraction::Extractor;
use crate::picture;
use crate::window::{ClosedWindow, WindowOperator};
use crate::{PayloadFormat, PictureChoice, Rule, Time};

/// A rule, its windows and the messages in them.
pub(super) struct RuleState {
    pub(super) rule: Arc<Rule>,
    pub(super) extractor: Extractor,
    pub(super) windows: WindowOperator,
    pub(super) messages: KeptMessages,
    pub(super) dedupe: DedupeValues,
    /// Messages dropped since the rule's last event.
    dropped: u64,
}

impl RuleState {
    pub(super) fn new(rule: Arc<Rule>, extractor: Extractor) -> Self {
        Self {
            windows: WindowOperator::new(
                rule.window.clone(),
                rule.fields.len(),
                rule.limits.keep_messages,
                rule.group_by.is_some(),
            )
            .keeping_first(rule.shown_pictures() == Some(PictureChoice::First)),
            rule,
            extractor,
            messages: KeptMessages::default(),
            dedupe: DedupeValues::default(),
            dropped: 0,
        }
    }

    /// Replaces the rule by one that counts the same messages in the same windows.
    pub(super) fn replace_rule(&mut self, rule: Arc<Rule>, extractor: Extractor) {
        (self.rule, self.extractor) = (rule, extractor);
    }

    /// Keeps a message that was assigned to a window. Of pictures that no window may show, the content is left out.
    pub(super) fn keep(
        &mut self,
        mut message: KeptMessage,
        closed: &[ClosedWindow],
        changes: &mut Vec<RuleChange>,
    ) {
        if self.rule.payload != PayloadFormat::Image {
            changes.push(RuleChange::KeepMessage(Box::new(message.clone())));
            self.messages.insert(message);
            return;
        }
        if picture::format_of(&message.payload).is_none() {
            message.payload = picture::without_content(&message.payload);
        }
        let (group, seq) = (message.group.clone(), message.seq);
        self.keep_picture(message, closed, changes);
        let kept = self.messages.of_group(&group).and_then(|group| group.get(&seq));
        // A message whose content was left out at once is among the changes already.
        let known = |change: &RuleChange| matches!(change, RuleChange::KeepMessage(kept) if kept.seq == seq);
        if !changes.iter().any(known) {
            changes.extend(kept.map(|kept| RuleChange::KeepMessage(Box::new(kept.clone()))));
        }
    }

    /// As [`Self::keep`] for a message that is stored already.
    pub(super) fn keep_restored(
        &mut self,
        message: KeptMessage,
        closed: &[ClosedWindow],
        changes: &mut Vec<RuleChange>,
    ) {
        if self.rule.payload == PayloadFormat::Image {
            self.keep_picture(message, closed, changes);
        } else {
            self.messages.insert(message);
        }
    }

    fn keep_picture(&mut self, message: KeptMessage, closed: &[ClosedWindow], changes: &mut Vec<RuleChange>) {
        let group = message.group.clone();
        self.messages.insert_picture(message);
        let mut shown = Vec::new();
        for seqs in self.windows.shown_seqs(&group) {
            shown.extend(self.shown_pictures(&group, seqs));
        }
        for closed in closed.iter().filter(|closed| closed.group == group) {
            shown.extend(self.shown_pictures(&group, closed.seqs.iter().copied()));
        }
        let changed = self.messages.leave_out_content(&group, &shown).into_iter();
        changes.extend(changed.map(|message| RuleChange::KeepMessage(Box::new(message))));
    }

    /// Of messages of a window, by ascending time, the pictures that the model is shown.
    pub(super) fn shown_pictures(&self, group: &str, seqs: impl DoubleEndedIterator<Item = u64>) -> Vec<u64> {
        let Some(choice) = self.rule.shown_pictures() else {
            return Vec::new();
        };
        choice.of(seqs.filter(|seq| self.messages.is_picture(group, *seq)))
    }

    /// Counts a message that is dropped; of several between two events only the first is logged.
    pub(super) fn record_dropped(&mut self) {
        if self.dropped == 0 {
            tracing::warn!(
                rule = self.rule.name,
                bytes = self.messages.bytes(),
                "messages of a rule are dropped: its open windows hold as much as they may (limits.store of the rule, \
                 store.max_rules_size), or the store fails"
            );
        }
        self.dropped += 1;
    }

    /// The number of messages dropped since the last call.
    pub(super) fn take_dropped(&mut self) -> u64 {
        std::mem::take(&mut self.dropped)
    }

    /// Remembers a value of `dedupe`.
    pub(super) fn remember(&mut self, value: DedupeDigest, at: Time, changes: &mut Vec<RuleChange>) {
        let rule = self.rule.name.clone();
        let forgotten = self.dedupe.add(value, at);
        if !forgotten.is_empty() {
            changes.push(RuleChange::ForgetDedupeValues {
                rule: rule.clone(),
                values: forgotten.into_iter().map(DedupeDigest::to_text).collect(),
            });
        }
        let value = value.to_text();
        changes.push(RuleChange::AddDedupeValue { rule, value, at });
    }
}
