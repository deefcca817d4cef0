//! What a message does: it counts, is a repeat, or is dropped; and which windows end with it.

use super::RuleEngine;
use super::clock::HOLD_QUIET_PERIOD;
use super::dedupe::DedupeDigest;
use crate::changes::{KeptMessage, RuleChange};
use crate::extraction::{Extracted, ParsedPayload, RawMessage};
use crate::window::{ClosedWindow, OVERFLOW_GROUP, WindowMessage};
use crate::{RuleMessage, Time};

/// WindowOperator may hold so much in memory however little their messages may: a few windows of many fields must do.
const MIN_WINDOW_MEMORY: u64 = 64 << 10;

impl RuleEngine {
    pub(super) fn ingest_as(&mut self, message: &RuleMessage, wall: Time, storable: bool) -> Vec<RuleChange> {
        let mut changes = Vec::new();
        let now = self.now(wall, &mut changes);
        if let Some(hold) = &mut self.hold {
            hold.ends_at = now.after(HOLD_QUIET_PERIOD).min(hold.latest_end);
        }
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
                seq: self.seq + 1,
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

    pub(super) fn ingest_for_rule(
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
        let room = storable && self.make_room(&name, kept.cost(), now, changes);
        let Some(state) = self.rules.get_mut(&name) else {
            return;
        };
        let window_message = window_message(&kept, extracted);
        let outcome = if room {
            state.windows.ingest(&window_message)
        } else {
            state.windows.ingest_unstorable(&window_message)
        };
        if outcome.overflow {
            OVERFLOW_GROUP.clone_into(&mut kept.group);
        }
        if outcome.dropped {
            state.drop_one();
            self.counters.dropped += 1;
        } else {
            self.seq = kept.seq;
            // Only now: what is dropped may come again.
            if let Some(value) = value {
                state.remember(value, now, changes);
            }
        }
        let group = kept.group.clone();
        // Without `absence` it says nothing that a message was dropped.
        let checkpointed = if outcome.dropped {
            state.rule.window.absence.is_some()
        } else {
            !outcome.assigned
        };
        if outcome.assigned {
            self.counters.messages += 1;
            changes.push(RuleChange::Message(Box::new(kept.clone())));
            self.keep_message(kept);
        } else if !outcome.dropped {
            self.counters.late += 1;
        }
        self.apply_outcome(&name, outcome.closed, outcome.evicted, now, changes);
        if checkpointed {
            let state = self.rules.get(&name);
            let checkpoint = state.and_then(|state| state.windows.checkpoint(&group));
            changes.extend(checkpoint.map(|checkpoint| RuleChange::Checkpoint {
                rule: name,
                group,
                checkpoint,
            }));
        }
    }

    /// Whether there is room for a message of that cost, if need be after what is due has ended.
    pub(super) fn make_room(
        &mut self,
        name: &str,
        cost: u64,
        now: Time,
        changes: &mut Vec<RuleChange>,
    ) -> bool {
        if self.has_room(name, cost) {
            return true;
        }
        let Some(state) = self.rules.get_mut(name) else {
            return false;
        };
        let closed = state.windows.tick(now);
        self.emit(name, closed, now, changes);
        for state in self.rules.values_mut() {
            state.windows.give_back();
        }
        self.has_room(name, cost)
    }

    /// Messages are bounded on the disk, and what windows hold of them in memory. The latter is known only afterwards: it
    /// may exceed its bound by one message's.
    fn has_room(&self, name: &str, cost: u64) -> bool {
        let held: u64 = self.rules.values().map(|state| state.windows.held_bytes()).sum();
        self.bytes + cost <= self.most_bytes
            && held < self.most_bytes.max(MIN_WINDOW_MEMORY)
            && self.rules.get(name).is_some_and(|state| {
                let most = state.rule.limits.store_bytes;
                let held = state.windows.held_bytes();
                state.bytes + cost <= most && held < most.max(MIN_WINDOW_MEMORY)
            })
    }

    /// What follows from a message: windows that ended, groups that were forgotten.
    pub(super) fn apply_outcome(
        &mut self,
        name: &str,
        closed: Vec<ClosedWindow>,
        evicted: Vec<String>,
        now: Time,
        changes: &mut Vec<RuleChange>,
    ) {
        self.emit(name, closed, now, changes);
        changes.extend(evicted.into_iter().map(|group| RuleChange::DropCheckpoint {
            rule: name.to_owned(),
            group,
        }));
    }

    pub(super) fn keep_message(&mut self, message: KeptMessage) {
        let cost = message.cost();
        if let Some(state) = self.rules.get_mut(&message.rule) {
            self.bytes += cost;
            self.held += 1;
            state.bytes += cost;
            let group = state.messages.entry(message.group.clone()).or_default();
            group.insert(message.seq, message);
        }
    }
}

pub(super) fn window_message(message: &KeptMessage, extracted: Extracted) -> WindowMessage {
    WindowMessage {
        seq: message.seq,
        arrived: message.arrived,
        event_time: extracted.event_time,
        group: extracted.group,
        bytes: message.payload.len() as u64,
        early: extracted.early,
        values: extracted.values,
    }
}
