//! A rule at work.

use std::collections::HashMap;
use std::sync::Arc;

use super::RuleState;
use super::dedupe::{DedupeDigest, DedupeValues};
use crate::changes::{KeptMessage, RuleChange};
use crate::extraction::Extractor;
use crate::window::{ClosedWindow, WindowOperator};
use crate::{PromptSource, Rule, Time};

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
            messages: HashMap::new(),
            bytes: 0,
            dropped: 0,
            dedupe: DedupeValues::default(),
        }
    }

    /// Counts a message that is dropped.
    pub(super) fn drop_one(&mut self) {
        if self.dropped == 0 {
            tracing::warn!(
                rule = self.rule.name,
                bytes = self.bytes,
                "messages of a rule are dropped: its open windows hold as much as they may (limits.store of the rule, \
                 store.max_rules_size), or the store fails"
            );
        }
        self.dropped += 1;
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

    /// Takes out the messages that no open window needs any more.
    pub(super) fn forget(&mut self, closed: &ClosedWindow) -> Vec<KeptMessage> {
        let Some(group) = self.messages.get_mut(&closed.group) else {
            return Vec::new();
        };
        let mut forgotten = Vec::new();
        for range in &closed.forget {
            let mut tail = group.split_off(range.start());
            let mut beyond = tail.split_off(&range.end().saturating_add(1));
            forgotten.extend(tail.into_values());
            group.append(&mut beyond);
        }
        if group.is_empty() {
            self.messages.remove(&closed.group);
        }
        self.bytes -= forgotten.iter().map(KeptMessage::cost).sum::<u64>();
        forgotten
    }
}

/// Whether no model is asked: then there is nobody to keep thousands of messages for.
pub(super) fn wordless(rule: &Rule) -> bool {
    rule.summary.prompt == PromptSource::None
}
