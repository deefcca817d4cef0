//! All rules of a node: what they have seen, and what is to be said about it.
//!
//! The book decides and does nothing: no clock, no tasks, no disk. What it decides comes back as changes for the store,
//! in order.

mod seen;
#[cfg(test)]
mod tests;
mod waiting;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use super::intake::{Message, Read, Reader, Reading};
use super::record::{Ended, KeptMessage, PendingEvent, RestoredRules, RuleChange, ShownMessage};
use super::window::{Closed, OTHER, Observation, Windows};
use super::{Closing, Event, EventWindow, Output, PromptSource, Rule, RuleCounters, Selector, Time, words};
use seen::Seen;
use waiting::Waiting;

pub(crate) use seen::SEEN_AT_MOST;
pub(crate) use waiting::Room;

/// Receipts that are remembered for the broker's redeliveries: many more than it has under way to us.
const RECEIPTS: usize = 1024;
/// The wall clock may stand still or step back by so much without having been set.
const UNSTEADY: Duration = Duration::from_secs(1);
/// A window that is closed so long after it was to end is published late.
const LATE: Duration = Duration::from_secs(5);

/// A message for rules.
#[derive(Debug, Clone)]
pub struct RuleMessage {
    /// Its topic.
    pub topic: String,
    /// Its payload.
    pub payload: Vec<u8>,
    /// The names of the rules that take it.
    pub rules: Vec<Arc<str>>,
    /// Tells it from others, the same again if the broker delivers it again; `None` where it never does.
    pub receipt: Option<[u8; 32]>,
    /// The broker says that it may have delivered it before.
    pub redelivered: bool,
}

/// After a restart, what waits at the broker is taken to be read when nothing has come for so long since the last message,
/// at most so long after the start.
const QUIET: Duration = Duration::from_secs(2);
const SETTLED: Duration = Duration::from_secs(30);

/// Windows are held for what waits at the broker.
#[derive(Debug, Clone, Copy)]
struct Hold {
    until: Time,
    at_most: Time,
}

/// An event that waits for words.
pub(crate) struct Unworded {
    pub(crate) pending: PendingEvent,
    /// Its rule, where that still exists.
    pub(crate) rule: Option<Arc<Rule>>,
    /// What is left of the rule's deadline.
    pub(crate) left: Duration,
}

/// A rule at work.
struct Desk {
    rule: Arc<Rule>,
    reader: Reader,
    windows: Windows,
    /// Messages of open windows, by group.
    messages: HashMap<String, BTreeMap<u64, KeptMessage>>,
    /// What they cost in the store.
    bytes: u64,
    /// Messages dropped since its last event.
    dropped: u64,
    seen: Seen,
}

pub(crate) struct Book {
    desks: BTreeMap<String, Desk>,
    receipts: VecDeque<[u8; 32]>,
    known_receipts: HashSet<[u8; 32]>,
    waiting: Waiting,
    seq: u64,
    events: u64,
    /// Makes event ids differ between processes.
    boot: u64,
    /// Messages of open windows.
    held: usize,
    bytes: u64,
    most_bytes: u64,
    /// The latest time that was told.
    clock: Option<Time>,
    /// Whether windows are held for what waits at the broker.
    hold: Option<Hold>,
    counters: RuleCounters,
}

impl Book {
    /// A book without rules; all messages of open windows together may cost `most_bytes`.
    pub(crate) fn new(boot: u64, most_bytes: u64, room: Room) -> Self {
        Self {
            desks: BTreeMap::new(),
            receipts: VecDeque::new(),
            known_receipts: HashSet::new(),
            waiting: Waiting::new(room),
            seq: 0,
            events: 0,
            boot,
            held: 0,
            bytes: 0,
            most_bytes,
            clock: None,
            hold: None,
            counters: RuleCounters::default(),
        }
    }

    /// Takes these rules in place of those there are. One that has changed only in its words and outputs goes on with
    /// its windows; those of others end now.
    ///
    /// # Errors
    /// A rule can't be used; one line. Then nothing has changed.
    pub(crate) fn set_rules(&mut self, rules: Vec<Rule>, wall: Time) -> Result<Vec<RuleChange>, String> {
        let mut readers = Vec::new();
        for rule in &rules {
            readers.push(check(rule)?);
        }
        let mut changes = Vec::new();
        let now = self.now(wall, &mut changes);
        let kept: HashSet<&str> = rules.iter().map(|rule| rule.name.as_str()).collect();
        let gone: Vec<String> = self
            .desks
            .keys()
            .filter(|name| !kept.contains(name.as_str()))
            .cloned()
            .collect();
        for name in gone {
            self.leave(name, now, &mut changes);
        }
        for (rule, reader) in rules.into_iter().zip(readers) {
            let name = rule.name.clone();
            if self
                .desks
                .get(&name)
                .is_some_and(|desk| !desk.rule.counts_as(&rule))
            {
                self.leave(name.clone(), now, &mut changes);
            }
            let rule = Arc::new(rule);
            match self.desks.get_mut(&name) {
                Some(desk) => (desk.rule, desk.reader) = (rule, reader),
                None => {
                    self.desks.insert(name, Desk::new(rule, reader));
                }
            }
        }
        Ok(changes)
    }

    /// Counts a message in the windows of the rules that take it.
    pub(crate) fn observe(&mut self, message: &RuleMessage, wall: Time) -> Vec<RuleChange> {
        self.take(message, wall, true)
    }

    /// As [`Book::observe`] while nothing can be stored: unless it ends a window at once, the message is dropped.
    pub(crate) fn observe_unstored(&mut self, message: &RuleMessage, wall: Time) -> Vec<RuleChange> {
        self.take(message, wall, false)
    }

    /// Ends what is due.
    pub(crate) fn tick(&mut self, wall: Time) -> Vec<RuleChange> {
        let mut changes = Vec::new();
        let now = self.now(wall, &mut changes);
        if self.hold.is_some_and(|hold| hold.until <= now) {
            self.set_hold(None);
        }
        let due: Vec<String> = self
            .desks
            .iter()
            .filter(|(_, desk)| desk.windows.due().is_none_or(|due| due <= now))
            .map(|(name, _)| name.clone())
            .collect();
        for name in due {
            let Some(desk) = self.desks.get_mut(&name) else {
                continue;
            };
            let closed = desk.windows.tick(now);
            self.close(&name, closed, now, &mut changes);
        }
        let desks = &self.desks;
        self.waiting
            .expire(now, |rule| desks.get(rule).map(|desk| desk.rule.words.deadline));
        changes
    }

    /// Ends all windows of all rules.
    pub(crate) fn end_rules(&mut self, wall: Time, why: Closing) -> Vec<RuleChange> {
        let mut changes = Vec::new();
        let now = self.now(wall, &mut changes);
        let names: Vec<String> = self.desks.keys().cloned().collect();
        for name in names {
            self.end_all(&name, now, why, &mut changes);
        }
        changes
    }

    /// When [`Book::tick`] has something to do next.
    pub(crate) fn due(&self) -> Option<Time> {
        let windows = self.desks.values().filter_map(|desk| desk.windows.due());
        windows.chain(self.hold.map(|hold| hold.until)).min()
    }

    /// When a window ends next that the model may have to word: of a rule with a prompt.
    pub(crate) fn words_due(&self) -> Option<Time> {
        let wordy = |desk: &&Desk| !wordless(&desk.rule);
        let desks = self.desks.values().filter(wordy);
        desks.filter_map(|desk| desk.windows.due()).min()
    }

    /// The oldest event that goes as it is: it wants no words, or its time for them is over.
    pub(crate) fn take_facts(&mut self) -> Option<PendingEvent> {
        self.waiting.take_facts()
    }

    /// The oldest event that waits for words.
    pub(crate) fn take_waiting(&mut self) -> Option<Unworded> {
        let pending = self.waiting.take_wordy()?;
        let rule = self
            .desks
            .get(&pending.event.rule)
            .map(|desk| Arc::clone(&desk.rule));
        let deadline = rule.as_ref().map(|rule| rule.words.deadline).unwrap_or_default();
        let left = pending.left(self.clock.unwrap_or(pending.since), deadline);
        Some(Unworded { pending, rule, left })
    }

    /// The event is among the messages to be published.
    pub(crate) fn posted(&mut self, event: &Event) -> RuleChange {
        self.waiting.posted(&event.event_id);
        self.counters.events += 1;
        self.counters.failed += u64::from(event.error.is_some());
        RuleChange::Posted {
            event_id: event.event_id.clone(),
        }
    }

    /// Takes over what an earlier process left. Windows that ended meanwhile end now; those that messages may still be for
    /// which wait at the broker, and absences, when those are read.
    pub(crate) fn restore(&mut self, restored: RestoredRules, wall: Time) -> Vec<RuleChange> {
        let mut changes = Vec::new();
        let RestoredRules {
            messages,
            marks,
            pending,
            receipts,
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
        for receipt in receipts {
            self.remember(receipt);
        }
        let mut gone: BTreeSet<String> = BTreeSet::new();
        for (rule, value, at) in seen {
            let Some(desk) = self.desks.get_mut(&rule) else {
                gone.insert(rule);
                continue;
            };
            let forgotten = desk.seen.add(value, at);
            if !forgotten.is_empty() {
                changes.push(RuleChange::Unseen {
                    rule,
                    values: forgotten,
                });
            }
        }
        // What waits at the broker is about the time before, too.
        if !messages.is_empty() || !marks.is_empty() {
            self.set_hold(Some(Hold::from(wall)));
        }
        // What came in before the store could be read has the first numbers; the store is then written anew. Otherwise this
        // is 0, and everything keeps its number.
        let base = self.seq;
        for (rule, group, mut mark) in marks {
            // New messages go on behind all that were ever counted.
            mark.seq = mark.seq.map(|seq| seq + base);
            self.seq = self.seq.max(mark.seq.unwrap_or(0));
            match self.desks.get_mut(&rule) {
                Some(desk) => desk.windows.restore(group, mark),
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
            let reading = Reading::of(Message {
                topic: &message.topic,
                payload: &message.payload,
            });
            let read = desk.reader.read(&reading);
            // The group as it was stored: there may have been too many then.
            let read = Read {
                group: message.group.clone(),
                ..read
            };
            let observed = desk.windows.observe(&observation(&message, read));
            let name = message.rule.clone();
            if observed.placed {
                self.keep(message);
            } else {
                orphans.push(message.seq);
            }
            self.after(&name, observed.closed, observed.dropped, wall, &mut changes);
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
    pub(crate) fn all(&self) -> RestoredRules {
        let marks = self.desks.iter().flat_map(|(name, desk)| {
            desk.windows
                .marks()
                .map(|(group, mark)| (name.clone(), group.to_owned(), mark))
        });
        let messages: BTreeMap<u64, KeptMessage> = self
            .desks
            .values()
            .flat_map(|desk| desk.messages.values().flatten())
            .map(|(seq, message)| (*seq, message.clone()))
            .collect();
        let seen = self.desks.iter().flat_map(|(name, desk)| {
            let seen = desk.seen.all();
            seen.map(|(value, at)| (name.clone(), value.to_owned(), at))
        });
        RestoredRules {
            messages: messages.into_values().collect(),
            marks: marks.collect(),
            pending: self.waiting.all().cloned().collect(),
            receipts: self.receipts.iter().copied().collect(),
            seen: seen.collect(),
        }
    }

    /// How rules are doing.
    pub(crate) fn counters(&self) -> RuleCounters {
        RuleCounters {
            rules: self.desks.len(),
            held: self.held,
            held_bytes: self.bytes,
            waiting: self.waiting.len(),
            ..self.counters
        }
    }

    fn take(&mut self, message: &RuleMessage, wall: Time, storable: bool) -> Vec<RuleChange> {
        let mut changes = Vec::new();
        if let Some(receipt) = message.receipt {
            if message.redelivered && self.known_receipts.contains(&receipt) {
                self.counters.redelivered += 1;
                return changes;
            }
            self.remember(receipt);
            changes.push(RuleChange::Receipt(receipt));
        }
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

    fn observe_for(
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
        // Publishers count each for itself: repeats are looked for within a group.
        let value = read.repeat_of.as_ref();
        let value = value.map(|value| format!("{}\u{1f}{value}", read.group));
        if value.as_ref().is_some_and(|value| desk.seen.holds(value, now)) {
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
    fn make_room(&mut self, name: &str, cost: u64, now: Time, changes: &mut Vec<RuleChange>) -> bool {
        if self.has_room(name, cost) {
            return true;
        }
        let Some(desk) = self.desks.get_mut(name) else {
            return false;
        };
        let closed = desk.windows.tick(now);
        self.close(name, closed, now, changes);
        self.has_room(name, cost)
    }

    fn has_room(&self, name: &str, cost: u64) -> bool {
        self.bytes + cost <= self.most_bytes
            && self
                .desks
                .get(name)
                .is_some_and(|desk| desk.bytes + cost <= desk.rule.limits.store_bytes)
    }

    /// What follows from a message: windows that ended, groups that were forgotten.
    fn after(
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

    fn keep(&mut self, message: KeptMessage) {
        let cost = message.cost();
        if let Some(desk) = self.desks.get_mut(&message.rule) {
            self.bytes += cost;
            self.held += 1;
            desk.bytes += cost;
            let group = desk.messages.entry(message.group.clone()).or_default();
            group.insert(message.seq, message);
        }
    }

    fn end_all(&mut self, name: &str, now: Time, why: Closing, changes: &mut Vec<RuleChange>) {
        if let Some(desk) = self.desks.get_mut(name) {
            let closed = desk.windows.close_all(now, why);
            self.close(name, closed, now, changes);
        }
    }

    /// Ends a rule's windows and forgets it: another of its name begins anew.
    fn leave(&mut self, name: String, now: Time, changes: &mut Vec<RuleChange>) {
        self.end_all(&name, now, Closing::Reload, changes);
        self.desks.remove(&name);
        changes.push(RuleChange::Leave { rule: name });
    }

    fn close(&mut self, name: &str, closed: Vec<Closed>, now: Time, changes: &mut Vec<RuleChange>) {
        for closed in closed {
            let Some(desk) = self.desks.get_mut(name) else {
                return;
            };
            let mut last_topic = None;
            let shown = shown(&closed, desk, &mut last_topic);
            self.events += 1;
            // Where no model is asked, nothing is kept from it.
            let of_model = if wordless(&desk.rule) {
                closed.messages
            } else {
                shown.len() as u64
            };
            let event = event(
                &closed,
                desk,
                of_model,
                format!("{:016x}-e{}", self.boot, self.events),
                now,
            );
            desk.dropped = 0;
            let pending = PendingEvent {
                output: Output {
                    topic: fill(&desk.rule, &closed.group, last_topic.as_deref()),
                    ..desk.rule.output.clone()
                },
                event,
                messages: shown,
                since: now,
            };
            let forgotten = desk.forget(&closed);
            self.held -= forgotten.len();
            let cost: u64 = forgotten.iter().map(KeptMessage::cost).sum();
            self.bytes -= cost;
            self.counters.windows += 1;
            tracing::info!(
                rule = name,
                group = closed.group,
                reason = closed.why.as_str(),
                messages = closed.messages,
                late = closed.late,
                event.id = pending.event.event_id,
                "a window has ended"
            );
            self.waiting.push(pending.clone(), !wordless(&desk.rule));
            changes.push(RuleChange::Close(Box::new(Ended {
                rule: name.to_owned(),
                group: closed.group,
                mark: closed.mark,
                forget: forgotten.iter().map(|message| message.seq).collect(),
                pending: Some(pending),
            })));
        }
    }

    /// The windows' time: never earlier than before, unless the clock was set back.
    fn now(&mut self, wall: Time, changes: &mut Vec<RuleChange>) -> Time {
        let Some(before) = self.clock.filter(|before| *before > wall) else {
            self.clock = Some(wall);
            return wall;
        };
        if before.since(wall) <= UNSTEADY {
            return before;
        }
        tracing::warn!(
            by_s = before.since(wall).as_secs_f64(),
            "the wall clock was set back; windows that would lie in the future end now"
        );
        self.clock = Some(wall);
        self.waiting.set_back(wall);
        self.hold = self.hold.map(|_| Hold::from(wall));
        let names: Vec<String> = self.desks.keys().cloned().collect();
        for name in names {
            let Some(desk) = self.desks.get_mut(&name) else {
                continue;
            };
            let closed = desk.windows.set_back(wall);
            self.close(&name, closed, wall, changes);
            if let Some(desk) = self.desks.get(&name) {
                changes.extend(desk.windows.marks().map(|(group, mark)| RuleChange::Mark {
                    rule: name.clone(),
                    group: group.to_owned(),
                    mark,
                }));
            }
        }
        wall
    }

    fn set_hold(&mut self, hold: Option<Hold>) {
        self.hold = hold;
        for desk in self.desks.values_mut() {
            desk.windows.hold(hold.is_some());
        }
    }

    fn remember(&mut self, receipt: [u8; 32]) {
        if self.receipts.len() >= RECEIPTS
            && let Some(oldest) = self.receipts.pop_front()
        {
            self.known_receipts.remove(&oldest);
        }
        if self.known_receipts.insert(receipt) {
            self.receipts.push_back(receipt);
        }
    }
}

/// Whether a rule can be used.
///
/// # Errors
/// Its condition or its template can't be; one line.
pub(crate) fn check(rule: &Rule) -> Result<Reader, String> {
    let wrong = |fault: String| format!("rule \"{}\": {fault}", rule.name);
    words::Template::compile(&rule.words.prompt, &rule.fields).map_err(|fault| wrong(fault.to_string()))?;
    Reader::new(rule).map_err(wrong)
}

impl Hold {
    fn from(now: Time) -> Self {
        let at_most = now.after(SETTLED);
        Self {
            until: at_most,
            at_most,
        }
    }
}

impl Desk {
    fn new(rule: Arc<Rule>, reader: Reader) -> Self {
        Self {
            windows: Windows::new(
                rule.window.clone(),
                rule.fields.len(),
                rule.limits.keep_messages,
                rule.group_by.is_some(),
            ),
            rule,
            reader,
            messages: HashMap::new(),
            bytes: 0,
            dropped: 0,
            seen: Seen::default(),
        }
    }

    /// Counts a message that is dropped.
    fn drop_one(&mut self) {
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
    fn see(&mut self, value: String, at: Time, changes: &mut Vec<RuleChange>) {
        let rule = self.rule.name.clone();
        let values = self.seen.add(value.clone(), at);
        if !values.is_empty() {
            changes.push(RuleChange::Unseen {
                rule: rule.clone(),
                values,
            });
        }
        changes.push(RuleChange::Seen { rule, value, at });
    }

    /// Takes out the messages that no open window needs any more.
    fn forget(&mut self, closed: &Closed) -> Vec<KeptMessage> {
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

fn observation(message: &KeptMessage, read: Read) -> Observation {
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

/// Whether no model is asked: then there is nobody to keep thousands of messages for.
fn wordless(rule: &Rule) -> bool {
    rule.words.prompt == PromptSource::None
}

/// What the model is shown: the newest messages within the rule's bounds, oldest first.
fn shown(closed: &Closed, desk: &Desk, last_topic: &mut Option<String>) -> Vec<ShownMessage> {
    let Some(messages) = desk.messages.get(&closed.group) else {
        return Vec::new();
    };
    if wordless(&desk.rule) {
        let newest = closed.seqs.iter().rev().find_map(|seq| messages.get(seq));
        *last_topic = newest.map(|message| message.topic.clone());
        return Vec::new();
    }
    let mut bytes = 0;
    let mut shown: Vec<ShownMessage> = Vec::new();
    for seq in closed.seqs.iter().rev() {
        let Some(message) = messages.get(seq) else {
            continue;
        };
        last_topic.get_or_insert_with(|| message.topic.clone());
        let payload = words::text(&message.payload, words::MESSAGE_CAP);
        bytes += payload.len();
        // The newest is shown in any case: it is cut already.
        if bytes > desk.rule.limits.keep_bytes && !shown.is_empty() {
            break;
        }
        let read = desk.reader.read(&Reading::of(Message {
            topic: &message.topic,
            payload: &message.payload,
        }));
        shown.push(ShownMessage {
            time: desk.windows.time_of(read.stamp, message.arrived),
            topic: message.topic.clone(),
            payload,
            fields: desk.reader.named(read.values),
        });
    }
    shown.reverse();
    shown
}

fn event(closed: &Closed, desk: &Desk, shown: u64, event_id: String, now: Time) -> Event {
    let rule = &desk.rule;
    Event {
        event_id,
        rule: rule.name.clone(),
        group: closed.group.clone(),
        window: EventWindow {
            start: closed.start,
            end: closed.end,
            reason: closed.why,
            messages: closed.messages,
            late: closed.late,
            left_out: closed.messages.saturating_sub(shown),
            dropped: desk.dropped,
            closed_late: now.since(closed.at) > LATE,
        },
        stats: rule
            .fields
            .iter()
            .map(|field| field.name.clone())
            .zip(closed.facts.iter().cloned())
            .collect(),
        text: None,
        unsupported_numbers: None,
        data: None,
        error: None,
        finish_reason: None,
        prompt_tokens: 0,
        completion_tokens: 0,
        cached_tokens: 0,
        model: Arc::from(""),
    }
}

/// The topic of an event: what a message says may stand in it only where the rule says so, and never as more than a
/// part of a level.
fn fill(rule: &Rule, group: &str, last_topic: Option<&str>) -> String {
    let level = |text: &str| -> String {
        let clean: String = text
            .chars()
            .map(|c| {
                if c.is_control() || matches!(c, '/' | '+' | '#') {
                    '_'
                } else {
                    c
                }
            })
            .collect();
        if clean.is_empty() { "-".to_owned() } else { clean }
    };
    let mut out = String::new();
    let mut rest = rule.output.topic.as_str();
    while let Some(open) = rest.find('{') {
        out.push_str(&rest[..open]);
        let Some(close) = rest[open..].find('}') else {
            break;
        };
        let name = &rest[open + 1..open + close];
        if name == "group" {
            out.push_str(&level(group));
        } else if let Some(number) = name.strip_prefix("topic:").and_then(|n| n.parse::<usize>().ok()) {
            // Without a message, the group tells the level where it is made of it.
            let of_message = last_topic.and_then(|topic| topic.split('/').nth(number));
            let of_group = (rule.group_by == Some(Selector::Topic(number))).then_some(group);
            out.push_str(&level(of_message.or(of_group).unwrap_or_default()));
        } else {
            out.push_str(&rest[open..=open + close]);
        }
        rest = &rest[open + close + 1..];
    }
    out.push_str(rest);
    out
}
