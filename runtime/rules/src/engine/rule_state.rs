//! A rule at work.

use std::collections::HashMap;
use std::sync::Arc;

use super::Desk;
use super::dedupe::{Digest, Seen};
use crate::changes::{KeptMessage, RuleChange};
use crate::extraction::Extractor;
use crate::window::{ClosedWindow, WindowOperator};
use crate::{PromptSource, Rule, Time};

impl Desk {
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
            seen: Seen::default(),
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
    pub(super) fn see(&mut self, value: Digest, at: Time, changes: &mut Vec<RuleChange>) {
        let rule = self.rule.name.clone();
        let forgotten = self.seen.add(value, at);
        if !forgotten.is_empty() {
            changes.push(RuleChange::Unseen {
                rule: rule.clone(),
                values: forgotten.into_iter().map(Digest::text).collect(),
            });
        }
        let value = value.text();
        changes.push(RuleChange::Seen { rule, value, at });
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
    rule.words.prompt == PromptSource::None
}
