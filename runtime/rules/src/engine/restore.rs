//! What is kept over a restart, and what is made of it.

use std::collections::{BTreeMap, BTreeSet};

use super::dedupe::Digest;
use super::ingest::window_message;
use super::rule_state::wordless;
use super::{Book, Hold};
use crate::Time;
use crate::changes::{KeptMessage, RestoredRules, RuleChange};
use crate::extraction::{Extracted, ParsedPayload, RawMessage};

impl Book {
    /// Takes over what an earlier process left. WindowOperator that ended meanwhile end now; those that messages may still be for
    /// which wait at the broker, and absences, when those are read.
    pub fn restore(&mut self, restored: RestoredRules, wall: Time) -> Vec<RuleChange> {
        let mut changes = Vec::new();
        let RestoredRules {
            messages,
            checkpoints,
            pending,
            seen,
        } = restored;
        tracing::info!(
            messages = messages.len(),
            events = pending.len(),
            "what rules had counted is read"
        );
        for pending in pending {
            let desk = self.desks.get(&pending.event.rule);
            let wordless = desk.is_some_and(|desk| wordless(&desk.rule));
            let given_up = pending.event.error.is_some();
            self.waiting.push(pending, !wordless && !given_up);
        }
        let mut gone: BTreeSet<String> = BTreeSet::new();
        for (rule, value, at) in seen {
            let Some(desk) = self.desks.get_mut(&rule) else {
                gone.insert(rule);
                continue;
            };
            let digest = Digest::stored(&value);
            let mut forgotten: Vec<String> =
                desk.seen.add(digest, at).into_iter().map(Digest::text).collect();
            let digest = digest.text();
            if digest != value {
                // An earlier version kept the value itself.
                forgotten.push(value);
                let rule = rule.clone();
                changes.push(RuleChange::Seen {
                    rule,
                    value: digest,
                    at,
                });
            }
            if !forgotten.is_empty() {
                changes.push(RuleChange::Unseen {
                    rule,
                    values: forgotten,
                });
            }
        }
        // What waits at the broker is about the time before, too.
        if !messages.is_empty() || !checkpoints.is_empty() {
            self.set_hold(Some(Hold::from(wall)));
        }
        // What came in before the store could be read has the first numbers; the store is then written anew. Otherwise this
        // is 0, and everything keeps its number.
        let base = self.seq;
        for (rule, group, mut checkpoint) in checkpoints {
            // New messages go on behind all that were ever counted.
            checkpoint.seq = checkpoint.seq.map(|seq| seq + base);
            self.seq = self.seq.max(checkpoint.seq.unwrap_or(0));
            match self.desks.get_mut(&rule) {
                Some(desk) => desk.windows.restore(group, checkpoint),
                None => {
                    gone.insert(rule);
                }
            }
        }
        changes.extend(gone.into_iter().map(|rule| RuleChange::Leave { rule }));
        let mut orphans = Vec::new();
        for message in messages {
            let seq = message.seq + base;
            self.clock = self.clock.max(Some(message.arrived));
            let Some(desk) = self.desks.get_mut(&message.rule) else {
                orphans.push(message.seq);
                continue;
            };
            self.seq = self.seq.max(seq);
            let message = KeptMessage { seq, ..message };
            let parsed = ParsedPayload::new(RawMessage {
                topic: &message.topic,
                payload: &message.payload,
            });
            let extracted = desk.extractor.extract(&parsed);
            // The group as it was stored: there may have been too many then.
            let extracted = Extracted {
                group: message.group.clone(),
                ..extracted
            };
            let outcome = desk.windows.ingest(&window_message(&message, extracted));
            let name = message.rule.clone();
            if outcome.assigned {
                self.keep(message);
            } else {
                orphans.push(message.seq);
            }
            self.after(&name, outcome.closed, outcome.evicted, wall, &mut changes);
        }
        if !orphans.is_empty() {
            tracing::warn!(
                messages = orphans.len(),
                "messages of rules that are no longer there are forgotten"
            );
            changes.push(RuleChange::Forget(orphans));
        }
        changes.extend(self.tick(wall));
        changes
    }

    /// Everything that is to be kept.
    pub fn all(&self) -> RestoredRules {
        let checkpoints = self.desks.iter().flat_map(|(name, desk)| {
            desk.windows
                .checkpoints()
                .map(|(group, checkpoint)| (name.clone(), group.to_owned(), checkpoint))
        });
        let messages: BTreeMap<u64, KeptMessage> = self
            .desks
            .values()
            .flat_map(|desk| desk.messages.values().flatten())
            .map(|(seq, message)| (*seq, message.clone()))
            .collect();
        let seen = self.desks.iter().flat_map(|(name, desk)| {
            let seen = desk.seen.all();
            seen.map(|(value, at)| (name.clone(), value.text(), at))
        });
        RestoredRules {
            messages: messages.into_values().collect(),
            checkpoints: checkpoints.collect(),
            pending: self.waiting.all().cloned().collect(),
            seen: seen.collect(),
        }
    }
}
