//! The state that outlives a restart, and its restoration.

use std::collections::{BTreeMap, BTreeSet};

use super::RuleEngine;
use super::dedupe::DedupeDigest;
use super::ingest::window_message;
use crate::changes::{KeptMessage, PendingEvent, RestoredRules, RuleChange};
use crate::extraction::{Extracted, ParsedPayload};
use crate::{Checkpoint, Time};

impl RuleEngine {
    /// Restores the state of an earlier process. Windows that are due close now; event-time windows and absences wait until
    /// the broker's backlog is read, since messages in it may belong to them.
    pub fn restore(&mut self, restored: RestoredRules, wall: Time) -> Vec<RuleChange> {
        let RestoredRules {
            messages,
            checkpoints,
            pending,
            dedupe_values,
        } = restored;
        tracing::info!(
            messages = messages.len(),
            events = pending.len(),
            "what rules had counted is read"
        );
        let mut changes = Vec::new();
        let mut removed_rules: BTreeSet<String> = BTreeSet::new();
        self.restore_pending(pending);
        self.restore_dedupe_values(dedupe_values, &mut removed_rules, &mut changes);
        if !messages.is_empty() || !checkpoints.is_empty() {
            self.hold_event_time(wall);
        }
        // Messages that came in before the store could be read have the first numbers; the store is then rewritten.
        // Otherwise this is 0, and every message keeps its number.
        let base = self.last_seq;
        self.restore_checkpoints(checkpoints, base, &mut removed_rules);
        changes.extend(
            removed_rules
                .into_iter()
                .map(|rule| RuleChange::RemoveRule { rule }),
        );
        let orphans = self.restore_messages(messages, base, wall, &mut changes);
        if !orphans.is_empty() {
            tracing::warn!(
                messages = orphans.len(),
                "messages of rules that are no longer there are forgotten"
            );
            changes.push(RuleChange::ForgetMessages(orphans));
        }
        changes.extend(self.tick(wall));
        changes
    }

    /// The whole state that outlives a restart.
    pub fn all(&self) -> RestoredRules {
        let checkpoints = self.rules.iter().flat_map(|(name, state)| {
            let checkpoints = state.windows.checkpoints();
            checkpoints.map(|(group, checkpoint)| (name.clone(), group.to_owned(), checkpoint))
        });
        let messages = self.rules.values().flat_map(|state| state.messages.iter());
        let messages: BTreeMap<u64, KeptMessage> =
            messages.map(|message| (message.seq, message.clone())).collect();
        let dedupe_values = self.rules.iter().flat_map(|(name, state)| {
            let values = state.dedupe.all();
            values.map(|(value, at)| (name.clone(), value.to_text(), at))
        });
        RestoredRules {
            messages: messages.into_values().collect(),
            checkpoints: checkpoints.collect(),
            pending: self.pending.all().cloned().collect(),
            dedupe_values: dedupe_values.collect(),
        }
    }

    fn restore_pending(&mut self, pending: Vec<PendingEvent>) {
        for pending in pending {
            let state = self.rules.get(&pending.event.rule);
            let facts_only = state.is_some_and(|state| !state.rule.needs_summary());
            let given_up = pending.event.error.is_some();
            self.pending.push(pending, !facts_only && !given_up);
        }
    }

    /// Restores values of `dedupe`, and adds the rules of others to `removed_rules`.
    fn restore_dedupe_values(
        &mut self,
        dedupe_values: Vec<(String, String, Time)>,
        removed_rules: &mut BTreeSet<String>,
        changes: &mut Vec<RuleChange>,
    ) {
        for (rule, stored, at) in dedupe_values {
            let Some(state) = self.rules.get_mut(&rule) else {
                removed_rules.insert(rule);
                continue;
            };
            let digest = DedupeDigest::parse(&stored);
            let forgotten = state.dedupe.add(digest, at).into_iter();
            let mut forgotten: Vec<String> = forgotten.map(DedupeDigest::to_text).collect();
            let value = digest.to_text();
            if value != stored {
                // An earlier version stored the value itself.
                forgotten.push(stored);
                let rule = rule.clone();
                changes.push(RuleChange::AddDedupeValue { rule, value, at });
            }
            if !forgotten.is_empty() {
                let values = forgotten;
                changes.push(RuleChange::ForgetDedupeValues { rule, values });
            }
        }
    }

    /// Restores checkpoints, and adds the rules of others to `removed_rules`.
    fn restore_checkpoints(
        &mut self,
        checkpoints: Vec<(String, String, Checkpoint)>,
        base: u64,
        removed_rules: &mut BTreeSet<String>,
    ) {
        for (rule, group, mut checkpoint) in checkpoints {
            // The numbers of new messages follow those of all that were ever counted.
            checkpoint.seq = checkpoint.seq.map(|seq| seq + base);
            self.last_seq = self.last_seq.max(checkpoint.seq.unwrap_or(0));
            match self.rules.get_mut(&rule) {
                Some(state) => state.windows.restore(group, checkpoint),
                None => {
                    removed_rules.insert(rule);
                }
            }
        }
    }

    /// Ingests stored messages again, by the times at which they arrived. Returns the numbers of those that belong to no
    /// window.
    fn restore_messages(
        &mut self,
        messages: Vec<KeptMessage>,
        base: u64,
        wall: Time,
        changes: &mut Vec<RuleChange>,
    ) -> Vec<u64> {
        let mut orphans = Vec::new();
        for message in messages {
            let seq = message.seq + base;
            self.clock.raise(message.arrived);
            let Some(state) = self.rules.get_mut(&message.rule) else {
                orphans.push(message.seq);
                continue;
            };
            self.last_seq = self.last_seq.max(seq);
            let message = KeptMessage { seq, ..message };
            let extracted = state.extractor.extract(&ParsedPayload::of_kept(&message));
            // The group as it was stored: there may have been too many then.
            let extracted = Extracted {
                group: message.group.clone(),
                ..extracted
            };
            let outcome = state.windows.ingest(&window_message(&message, extracted));
            let name = message.rule.clone();
            if outcome.assigned {
                state.keep_restored(message, &outcome.closed, changes);
            } else {
                orphans.push(message.seq);
            }
            self.apply_outcome(&name, outcome, wall, changes);
        }
        orphans
    }
}
