//! What is kept over a restart, and what is made of it.

use std::collections::{BTreeMap, BTreeSet};

use super::dedupe::DedupeDigest;
use super::ingest::window_message;
use super::rule_state::wordless;
use super::{EventTimeHold, RuleEngine};
use crate::Time;
use crate::changes::{KeptMessage, RestoredRules, RuleChange};
use crate::extraction::{Extracted, ParsedPayload, RawMessage};

impl RuleEngine {
    /// Takes over what an earlier process left. WindowOperator that ended meanwhile end now; those that messages may still be for
    /// which wait at the broker, and absences, when those are read.
    pub fn restore(&mut self, restored: RestoredRules, wall: Time) -> Vec<RuleChange> {
        let mut changes = Vec::new();
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
        for pending in pending {
            let state = self.rules.get(&pending.event.rule);
            let wordless = state.is_some_and(|state| wordless(&state.rule));
            let given_up = pending.event.error.is_some();
            self.pending.push(pending, !wordless && !given_up);
        }
        let mut gone: BTreeSet<String> = BTreeSet::new();
        for (rule, value, at) in dedupe_values {
            let Some(state) = self.rules.get_mut(&rule) else {
                gone.insert(rule);
                continue;
            };
            let digest = DedupeDigest::parse(&value);
            let mut forgotten: Vec<String> = state
                .dedupe
                .add(digest, at)
                .into_iter()
                .map(DedupeDigest::to_text)
                .collect();
            let digest = digest.to_text();
            if digest != value {
                // An earlier version kept the value itself.
                forgotten.push(value);
                let rule = rule.clone();
                changes.push(RuleChange::AddDedupeValue {
                    rule,
                    value: digest,
                    at,
                });
            }
            if !forgotten.is_empty() {
                changes.push(RuleChange::ForgetDedupeValues {
                    rule,
                    values: forgotten,
                });
            }
        }
        // What waits at the broker is about the time before, too.
        if !messages.is_empty() || !checkpoints.is_empty() {
            self.hold_event_time(Some(EventTimeHold::starting_at(wall)));
        }
        // What came in before the store could be read has the first numbers; the store is then written anew. Otherwise this
        // is 0, and everything keeps its number.
        let base = self.seq;
        for (rule, group, mut checkpoint) in checkpoints {
            // New messages go on behind all that were ever counted.
            checkpoint.seq = checkpoint.seq.map(|seq| seq + base);
            self.seq = self.seq.max(checkpoint.seq.unwrap_or(0));
            match self.rules.get_mut(&rule) {
                Some(state) => state.windows.restore(group, checkpoint),
                None => {
                    gone.insert(rule);
                }
            }
        }
        changes.extend(gone.into_iter().map(|rule| RuleChange::RemoveRule { rule }));
        let mut orphans = Vec::new();
        for message in messages {
            let seq = message.seq + base;
            self.clock = self.clock.max(Some(message.arrived));
            let Some(state) = self.rules.get_mut(&message.rule) else {
                orphans.push(message.seq);
                continue;
            };
            self.seq = self.seq.max(seq);
            let message = KeptMessage { seq, ..message };
            let parsed = ParsedPayload::new(RawMessage {
                topic: &message.topic,
                payload: &message.payload,
            });
            let extracted = state.extractor.extract(&parsed);
            // The group as it was stored: there may have been too many then.
            let extracted = Extracted {
                group: message.group.clone(),
                ..extracted
            };
            let outcome = state.windows.ingest(&window_message(&message, extracted));
            let name = message.rule.clone();
            if outcome.assigned {
                self.keep_message(message);
            } else {
                orphans.push(message.seq);
            }
            self.apply_outcome(&name, outcome.closed, outcome.evicted, wall, &mut changes);
        }
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

    /// Everything that is to be kept.
    pub fn all(&self) -> RestoredRules {
        let checkpoints = self.rules.iter().flat_map(|(name, state)| {
            state
                .windows
                .checkpoints()
                .map(|(group, checkpoint)| (name.clone(), group.to_owned(), checkpoint))
        });
        let messages: BTreeMap<u64, KeptMessage> = self
            .rules
            .values()
            .flat_map(|state| state.messages.values().flatten())
            .map(|(seq, message)| (*seq, message.clone()))
            .collect();
        let dedupe_values = self.rules.iter().flat_map(|(name, state)| {
            let dedupe_values = state.dedupe.all();
            dedupe_values.map(|(value, at)| (name.clone(), value.to_text(), at))
        });
        RestoredRules {
            messages: messages.into_values().collect(),
            checkpoints: checkpoints.collect(),
            pending: self.pending.all().cloned().collect(),
            dedupe_values: dedupe_values.collect(),
        }
    }
}
