//! The ingestion of a message: it is counted, known already, or dropped, and may close windows.

use super::RuleEngine;
use super::dedupe::DedupeDigest;
use crate::changes::{KeptMessage, RuleChange};
use crate::extraction::{Extracted, ParsedPayload, RawMessage};
use crate::window::{IngestOutcome, OVERFLOW_GROUP, WindowMessage};
use crate::{RuleMessage, Time};

/// Bytes that the windows of a rule may hold in memory however low its limit is: enough for a few windows of many fields.
const MIN_WINDOW_MEMORY: u64 = 64 << 10;

impl RuleEngine {
    pub(super) fn ingest_message(
        &mut self,
        message: &RuleMessage,
        wall: Time,
        storable: bool,
    ) -> Vec<RuleChange> {
        let mut changes = Vec::new();
        let now = self.advance_clock(wall, &mut changes);
        self.clock.extend_hold(now);
        let parsed = ParsedPayload::new(RawMessage {
            topic: &message.topic,
            payload: &message.payload,
        });
        for name in &message.rules {
            let Some(state) = self.rules.get(name.as_ref()) else {
                continue;
            };
            let extracted = state.extractor.extract(&parsed);
            let kept = KeptMessage {
                seq: self.last_seq + 1,
                rule: name.to_string(),
                group: extracted.group.clone(),
                arrived: now,
                topic: message.topic.clone(),
                payload: message.payload.clone(),
            };
            self.ingest_for_rule(kept, extracted, storable, &mut changes);
        }
        changes
    }

    fn ingest_for_rule(
        &mut self,
        mut kept: KeptMessage,
        extracted: Extracted,
        storable: bool,
        changes: &mut Vec<RuleChange>,
    ) {
        let (name, now) = (kept.rule.clone(), kept.arrived);
        let Some(state) = self.rules.get(&name) else {
            return;
        };
        let value = extracted.dedupe_value.as_ref();
        let value = value.map(|value| DedupeDigest::of(&extracted.group, value));
        if value.is_some_and(|value| state.dedupe.contains(value, now)) {
            self.counters.repeated += 1;
            return;
        }
        let storable = storable && self.make_room(&name, kept.cost(), now, changes);
        let Some(state) = self.rules.get_mut(&name) else {
            return;
        };
        let message = window_message(&kept, extracted);
        let outcome = if storable {
            state.windows.ingest(&message)
        } else {
            state.windows.ingest_unstorable(&message)
        };
        if outcome.overflow {
            OVERFLOW_GROUP.clone_into(&mut kept.group);
        }
        if outcome.dropped {
            state.record_dropped();
            self.counters.dropped += 1;
        } else {
            self.last_seq = kept.seq;
            // Only now: what is dropped may come again.
            if let Some(value) = value {
                state.remember(value, now, changes);
            }
        }
        let group = kept.group.clone();
        // A stored message brings its checkpoint up to date at the next restart; of a dropped one only the arrival counts,
        // and only for `absence`.
        let save_checkpoint = if outcome.dropped {
            state.rule.window.absence.is_some()
        } else {
            !outcome.assigned
        };
        if outcome.assigned {
            self.counters.messages += 1;
            state.keep(kept, &outcome.closed, changes);
        } else if !outcome.dropped {
            self.counters.late += 1;
        }
        self.apply_outcome(&name, outcome, now, changes);
        if save_checkpoint {
            let state = self.rules.get(&name);
            let checkpoint = state.and_then(|state| state.windows.checkpoint(&group));
            changes.extend(checkpoint.map(|checkpoint| RuleChange::SaveCheckpoint {
                rule: name,
                group,
                checkpoint,
            }));
        }
    }

    /// Whether there is room for a message of that cost, if need be after the windows that are due have closed.
    fn make_room(&mut self, name: &str, cost: u64, now: Time, changes: &mut Vec<RuleChange>) -> bool {
        if self.has_room(name, cost) {
            return true;
        }
        self.close_due(name, now, changes);
        for state in self.rules.values_mut() {
            state.windows.free_texts();
        }
        self.has_room(name, cost)
    }

    /// Whether the kept messages, with one of this cost, and the memory of windows are within their limits. The latter
    /// is known only after a message: it may exceed its limit by one message's.
    fn has_room(&self, name: &str, cost: u64) -> bool {
        let (mut kept_bytes, mut window_bytes) = (0, 0);
        for state in self.rules.values() {
            kept_bytes += state.messages.bytes();
            window_bytes += state.windows.held_bytes();
        }
        kept_bytes + cost <= self.max_bytes
            && window_bytes < self.max_bytes.max(MIN_WINDOW_MEMORY)
            && self.rules.get(name).is_some_and(|state| {
                let max_bytes = state.rule.limits.store_bytes;
                state.messages.bytes() + cost <= max_bytes
                    && state.windows.held_bytes() < max_bytes.max(MIN_WINDOW_MEMORY)
            })
    }

    /// Emits the windows that a message closed, and drops the checkpoints of the groups that it evicted.
    pub(super) fn apply_outcome(
        &mut self,
        name: &str,
        outcome: IngestOutcome,
        now: Time,
        changes: &mut Vec<RuleChange>,
    ) {
        self.emit(name, outcome.closed, now, changes);
        let evicted = outcome.evicted.into_iter();
        changes.extend(evicted.map(|group| RuleChange::DropCheckpoint {
            rule: name.to_owned(),
            group,
        }));
    }
}

pub(super) fn window_message(message: &KeptMessage, extracted: Extracted) -> WindowMessage {
    WindowMessage {
        seq: message.seq,
        arrived: message.arrived,
        event_time: extracted.event_time,
        group: extracted.group,
        bytes: extracted.bytes,
        early: extracted.early,
        values: extracted.values,
    }
}
