//! What a message does: it counts, is a repeat, or is dropped; and which windows end with it.

use super::Book;
use super::clock::QUIET;
use super::dedupe::Digest;
use crate::changes::{KeptMessage, RuleChange};
use crate::extraction::{Message, Read, Reading};
use crate::window::{Closed, OTHER, Observation};
use crate::{RuleMessage, Time};

/// Windows may hold so much in memory however little their messages may: a few windows of many fields must do.
const WINDOWS_AT_LEAST: u64 = 64 << 10;

impl Book {
    pub(super) fn take(&mut self, message: &RuleMessage, wall: Time, storable: bool) -> Vec<RuleChange> {
        let mut changes = Vec::new();
        let now = self.now(wall, &mut changes);
        if let Some(hold) = &mut self.hold {
            hold.until = now.after(QUIET).min(hold.at_most);
        }
        let reading = Reading::of(Message {
            topic: &message.topic,
            payload: &message.payload,
        });
        for name in &message.rules {
            let Some(desk) = self.desks.get(name.as_ref()) else {
                continue;
            };
            let read = desk.reader.read(&reading);
            let kept = KeptMessage {
                seq: self.seq + 1,
                rule: name.to_string(),
                group: read.group.clone(),
                arrived: now,
                topic: message.topic.clone(),
                payload: message.payload.clone(),
            };
            self.observe_for(kept, read, storable, &mut changes);
        }
        changes
    }

    pub(super) fn observe_for(
        &mut self,
        mut kept: KeptMessage,
        read: Read,
        storable: bool,
        changes: &mut Vec<RuleChange>,
    ) {
        let (name, now) = (kept.rule.clone(), kept.arrived);
        let Some(desk) = self.desks.get(&name) else {
            return;
        };
        let value = read.repeat_of.as_ref();
        let value = value.map(|value| Digest::of(&read.group, value));
        if value.is_some_and(|value| desk.seen.holds(value, now)) {
            self.counters.repeated += 1;
            return;
        }
        let room = storable && self.make_room(&name, kept.cost(), now, changes);
        let Some(desk) = self.desks.get_mut(&name) else {
            return;
        };
        let observation = observation(&kept, read);
        let observed = if room {
            desk.windows.observe(&observation)
        } else {
            desk.windows.observe_without_room(&observation)
        };
        if observed.overflow {
            OTHER.clone_into(&mut kept.group);
        }
        if observed.missed {
            desk.drop_one();
            self.counters.dropped += 1;
        } else {
            self.seq = kept.seq;
            // Only now: what is dropped may come again.
            if let Some(value) = value {
                desk.see(value, now, changes);
            }
        }
        let group = kept.group.clone();
        // Without `absence` it says nothing that a message was dropped.
        let marked = if observed.missed {
            desk.rule.window.absence.is_some()
        } else {
            !observed.placed
        };
        if observed.placed {
            self.counters.messages += 1;
            changes.push(RuleChange::Message(Box::new(kept.clone())));
            self.keep(kept);
        } else if !observed.missed {
            self.counters.late += 1;
        }
        self.after(&name, observed.closed, observed.dropped, now, changes);
        if marked {
            let desk = self.desks.get(&name);
            let mark = desk.and_then(|desk| desk.windows.mark(&group));
            changes.extend(mark.map(|mark| RuleChange::Mark {
                rule: name,
                group,
                mark,
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
        let Some(desk) = self.desks.get_mut(name) else {
            return false;
        };
        let closed = desk.windows.tick(now);
        self.close(name, closed, now, changes);
        for desk in self.desks.values_mut() {
            desk.windows.give_back();
        }
        self.has_room(name, cost)
    }

    /// Messages are bounded on the disk, and what windows hold of them in memory. The latter is known only afterwards: it
    /// may exceed its bound by one message's.
    fn has_room(&self, name: &str, cost: u64) -> bool {
        let held: u64 = self.desks.values().map(|desk| desk.windows.held_bytes()).sum();
        self.bytes + cost <= self.most_bytes
            && held < self.most_bytes.max(WINDOWS_AT_LEAST)
            && self.desks.get(name).is_some_and(|desk| {
                let most = desk.rule.limits.store_bytes;
                let held = desk.windows.held_bytes();
                desk.bytes + cost <= most && held < most.max(WINDOWS_AT_LEAST)
            })
    }

    /// What follows from a message: windows that ended, groups that were forgotten.
    pub(super) fn after(
        &mut self,
        name: &str,
        closed: Vec<Closed>,
        dropped: Vec<String>,
        now: Time,
        changes: &mut Vec<RuleChange>,
    ) {
        self.close(name, closed, now, changes);
        changes.extend(dropped.into_iter().map(|group| RuleChange::Unmark {
            rule: name.to_owned(),
            group,
        }));
    }

    pub(super) fn keep(&mut self, message: KeptMessage) {
        let cost = message.cost();
        if let Some(desk) = self.desks.get_mut(&message.rule) {
            self.bytes += cost;
            self.held += 1;
            desk.bytes += cost;
            let group = desk.messages.entry(message.group.clone()).or_default();
            group.insert(message.seq, message);
        }
    }
}

pub(super) fn observation(message: &KeptMessage, read: Read) -> Observation {
    Observation {
        seq: message.seq,
        arrived: message.arrived,
        stamp: read.stamp,
        group: read.group,
        bytes: message.payload.len() as u64,
        early: read.early,
        values: read.values,
    }
}
