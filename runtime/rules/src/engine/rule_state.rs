//! The state of one rule.

use std::sync::Arc;

use super::dedupe::{DedupeDigest, DedupeValues};
use super::kept_messages::KeptMessages;
use crate::changes::RuleChange;
use crate::extraction::Extractor;
use crate::window::WindowOperator;
use crate::{Rule, Time};

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
            ),
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
