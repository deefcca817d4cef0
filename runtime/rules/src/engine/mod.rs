//! All rules of a node: what they have seen, and what is to be said about it.
//!
//! The book decides and does nothing: no clock, no tasks, no disk. What it decides comes back as changes for the store,
//! in order.

#[cfg(test)]
mod capacity_tests;
mod clock;
mod dedupe;
mod emit;
mod ingest;
mod pending;
mod restore;
mod rule_state;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use super::changes::{KeptMessage, PendingEvent, RuleChange};
use super::extraction::Extractor;
use super::window::WindowOperator;
use super::{CloseReason, Event, Rule, RuleCounters, Time, summary};
use dedupe::DedupeValues;
use pending::PendingEvents;
use phi_edge_job::Receipt;
use rule_state::wordless;

pub use dedupe::MAX_DEDUPE_VALUES;
pub use pending::QueueCapacity;

/// A message for rules.
#[derive(Debug, Clone)]
pub struct RuleMessage {
    /// Its topic.
    pub topic: String,
    /// Its payload.
    pub payload: Vec<u8>,
    /// The names of the rules that take it.
    pub rules: Vec<Arc<str>>,
    /// Its receipt; `None` where the broker never delivers again.
    pub receipt: Option<Receipt>,
    /// The broker says that it may have delivered it before.
    pub redelivered: bool,
}

/// An event that waits for words.
pub struct PendingSummary {
    /// Its facts, and what the model is shown.
    pub pending: PendingEvent,
    /// Its rule, where that still exists.
    pub rule: Option<Arc<Rule>>,
    /// What is left of the rule's deadline.
    pub left: Duration,
}

/// A rule at work.
struct RuleState {
    rule: Arc<Rule>,
    extractor: Extractor,
    windows: WindowOperator,
    /// Messages of open windows, by group.
    messages: HashMap<String, BTreeMap<u64, KeptMessage>>,
    /// What they cost in the store.
    bytes: u64,
    /// Messages dropped since its last event.
    dropped: u64,
    dedupe: DedupeValues,
}

/// WindowOperator are held for what waits at the broker.
#[derive(Debug, Clone, Copy)]
struct EventTimeHold {
    ends_at: Time,
    latest_end: Time,
}

/// The rules of a node and their state.
pub struct RuleEngine {
    rules: BTreeMap<String, RuleState>,
    pending: PendingEvents,
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
    hold: Option<EventTimeHold>,
    counters: RuleCounters,
}

impl RuleEngine {
    /// A book without rules; all messages of open windows together may cost `most_bytes`.
    pub fn new(boot: u64, most_bytes: u64, capacity: QueueCapacity) -> Self {
        Self {
            rules: BTreeMap::new(),
            pending: PendingEvents::new(capacity),
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
    pub fn set_rules(&mut self, rules: Vec<Rule>, wall: Time) -> Result<Vec<RuleChange>, String> {
        let mut extractors = Vec::new();
        for rule in &rules {
            extractors.push(check(rule)?);
        }
        let mut changes = Vec::new();
        let now = self.now(wall, &mut changes);
        let kept: HashSet<&str> = rules.iter().map(|rule| rule.name.as_str()).collect();
        let gone: Vec<String> = self
            .rules
            .keys()
            .filter(|name| !kept.contains(name.as_str()))
            .cloned()
            .collect();
        for name in gone {
            self.remove_rule(name, now, &mut changes);
        }
        for (rule, extractor) in rules.into_iter().zip(extractors) {
            let name = rule.name.clone();
            if self
                .rules
                .get(&name)
                .is_some_and(|state| !state.rule.counts_as(&rule))
            {
                self.remove_rule(name.clone(), now, &mut changes);
            }
            let rule = Arc::new(rule);
            match self.rules.get_mut(&name) {
                Some(state) => (state.rule, state.extractor) = (rule, extractor),
                None => {
                    self.rules.insert(name, RuleState::new(rule, extractor));
                }
            }
        }
        Ok(changes)
    }

    /// Counts a message in the windows of the rules that take it.
    pub fn ingest(&mut self, message: &RuleMessage, wall: Time) -> Vec<RuleChange> {
        self.ingest_as(message, wall, true)
    }

    /// As [`RuleEngine::ingest`] while nothing can be stored: unless it ends a window at once, the message is dropped.
    pub fn ingest_unstorable(&mut self, message: &RuleMessage, wall: Time) -> Vec<RuleChange> {
        self.ingest_as(message, wall, false)
    }

    /// Ends what is due.
    pub fn tick(&mut self, wall: Time) -> Vec<RuleChange> {
        let mut changes = Vec::new();
        let now = self.now(wall, &mut changes);
        if self.hold.is_some_and(|hold| hold.ends_at <= now) {
            self.hold_event_time(None);
        }
        let due: Vec<String> = self
            .rules
            .iter()
            .filter(|(_, state)| state.windows.due().is_none_or(|due| due <= now))
            .map(|(name, _)| name.clone())
            .collect();
        for name in due {
            let Some(state) = self.rules.get_mut(&name) else {
                continue;
            };
            let closed = state.windows.tick(now);
            self.emit(&name, closed, now, &mut changes);
        }
        let rules = &self.rules;
        self.pending.expire(now, |rule| {
            rules.get(rule).map(|state| state.rule.summary.deadline)
        });
        changes
    }

    /// Ends all windows of all rules.
    pub fn close_windows(&mut self, wall: Time, reason: CloseReason) -> Vec<RuleChange> {
        let mut changes = Vec::new();
        let now = self.now(wall, &mut changes);
        let names: Vec<String> = self.rules.keys().cloned().collect();
        for name in names {
            self.close_rule_windows(&name, now, reason, &mut changes);
        }
        changes
    }

    /// When [`RuleEngine::tick`] has something to do next.
    pub fn due(&self) -> Option<Time> {
        let windows = self.rules.values().filter_map(|state| state.windows.due());
        windows.chain(self.hold.map(|hold| hold.ends_at)).min()
    }

    /// When a window ends next that the model may have to word: of a rule with a prompt.
    pub fn summary_due(&self) -> Option<Time> {
        let needs_summary = |state: &&RuleState| !wordless(&state.rule);
        let rules = self.rules.values().filter(needs_summary);
        rules.filter_map(|state| state.windows.due()).min()
    }

    /// The oldest event that goes as it is: it wants no words, or its time for them is over.
    pub fn take_facts_only(&mut self) -> Option<PendingEvent> {
        self.pending.take_facts_only()
    }

    /// The oldest event that waits for words.
    pub fn take_pending_summary(&mut self) -> Option<PendingSummary> {
        let pending = self.pending.take_pending_summary()?;
        let rule = self
            .rules
            .get(&pending.event.rule)
            .map(|state| Arc::clone(&state.rule));
        let deadline = rule
            .as_ref()
            .map(|rule| rule.summary.deadline)
            .unwrap_or_default();
        let left = pending.left(self.clock.unwrap_or(pending.since), deadline);
        Some(PendingSummary { pending, rule, left })
    }

    /// The event is among the messages to be published.
    pub fn posted(&mut self, event: &Event) -> RuleChange {
        self.pending.posted(&event.event_id);
        self.counters.events += 1;
        self.counters.failed += u64::from(event.error.is_some());
        RuleChange::Posted {
            event_id: event.event_id.clone(),
        }
    }

    /// How rules are doing.
    pub fn counters(&self) -> RuleCounters {
        RuleCounters {
            rules: self.rules.len(),
            held: self.held,
            held_bytes: self.bytes,
            window_bytes: self.rules.values().map(|state| state.windows.held_bytes()).sum(),
            waiting: self.pending.len(),
            ..self.counters
        }
    }

    /// The broker has delivered a message again that counts already.
    pub fn redelivered(&mut self) {
        self.counters.redelivered += 1;
    }
}

/// Whether a rule can be used.
///
/// # Errors
/// Its condition or its template can't be; one line.
pub(crate) fn check(rule: &Rule) -> Result<Extractor, String> {
    let wrong = |fault: String| format!("rule \"{}\": {fault}", rule.name);
    summary::Template::compile(&rule.summary.prompt, &rule.fields)
        .map_err(|fault| wrong(fault.to_string()))?;
    Extractor::new(rule).map_err(wrong)
}
