//! The rule engine: a pure state machine over the windows of all rules.
//!
//! Messages and the time go in, changes for the store come out, in the order in which they are to be written. The engine
//! has no clock, no tasks and no disk: time is an argument, and after a restart [`RuleEngine::restore`] rebuilds the
//! windows from the stored messages and checkpoints.

#[cfg(test)]
mod capacity_tests;
mod clock;
mod dedupe;
mod emit;
mod ingest;
mod kept_messages;
mod pending;
#[cfg(test)]
mod picture_tests;
mod restore;
mod rule_state;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use super::changes::{PendingEvent, RuleChange};
use super::extraction::Extractor;
use super::{CloseReason, Event, Rule, RuleCounters, Time, summary};
use clock::EngineClock;
use emit::EventIds;
use pending::PendingEvents;
use phi_edge_job::Receipt;
use rule_state::RuleState;

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

/// An event whose summary is to be written.
pub struct PendingSummary {
    /// Its facts, and the messages that the model is shown.
    pub pending: PendingEvent,
    /// Its rule; `None` if it is no longer configured.
    pub rule: Option<Arc<Rule>>,
    /// The time left until the rule's deadline.
    pub left: Duration,
}

/// The rules of a node, their windows, and the events that are not published yet.
pub struct RuleEngine {
    rules: BTreeMap<String, RuleState>,
    pending: PendingEvents,
    clock: EngineClock,
    event_ids: EventIds,
    /// The greatest number of a message so far.
    last_seq: u64,
    /// The most bytes of all rules' kept messages, and of what their windows hold in memory.
    max_bytes: u64,
    counters: RuleCounters,
}

impl RuleEngine {
    /// An engine without rules. `boot` makes event ids differ between processes; the messages of all open windows together
    /// may cost `max_bytes`.
    pub fn new(boot: u64, max_bytes: u64, capacity: QueueCapacity) -> Self {
        Self {
            rules: BTreeMap::new(),
            pending: PendingEvents::new(capacity),
            clock: EngineClock::default(),
            event_ids: EventIds::new(boot),
            last_seq: 0,
            max_bytes,
            counters: RuleCounters::default(),
        }
    }

    /// Replaces the rules. A rule that differs only in its summary, output and store limit keeps its windows; those of the
    /// others close now.
    ///
    /// # Errors
    /// A rule can't be used; one line. Then nothing has changed.
    pub fn set_rules(&mut self, rules: Vec<Rule>, wall: Time) -> Result<Vec<RuleChange>, String> {
        let extractors: Vec<Extractor> = rules.iter().map(check).collect::<Result<_, _>>()?;
        let mut changes = Vec::new();
        let now = self.advance_clock(wall, &mut changes);
        let kept: HashSet<&str> = rules.iter().map(|rule| rule.name.as_str()).collect();
        let removed = self.rules.keys().filter(|name| !kept.contains(name.as_str()));
        let removed: Vec<String> = removed.cloned().collect();
        for name in removed {
            self.remove_rule(name, now, &mut changes);
        }
        for (rule, extractor) in rules.into_iter().zip(extractors) {
            let name = rule.name.clone();
            let known = self.rules.get(&name);
            if known.is_some_and(|state| !state.rule.counts_as(&rule)) {
                self.remove_rule(name.clone(), now, &mut changes);
            }
            let rule = Arc::new(rule);
            match self.rules.get_mut(&name) {
                Some(state) => state.replace_rule(rule, extractor),
                None => {
                    self.rules.insert(name, RuleState::new(rule, extractor));
                }
            }
        }
        Ok(changes)
    }

    /// Counts a message in the windows of the rules that take it.
    pub fn ingest(&mut self, message: &RuleMessage, wall: Time) -> Vec<RuleChange> {
        self.ingest_message(message, wall, true)
    }

    /// As [`RuleEngine::ingest`] while nothing can be stored: unless it closes a window at once, the message is dropped.
    pub fn ingest_unstorable(&mut self, message: &RuleMessage, wall: Time) -> Vec<RuleChange> {
        self.ingest_message(message, wall, false)
    }

    /// Closes the windows that are due.
    pub fn tick(&mut self, wall: Time) -> Vec<RuleChange> {
        let mut changes = Vec::new();
        let now = self.advance_clock(wall, &mut changes);
        if self.clock.hold_end().is_some_and(|end| end <= now) {
            self.release_event_time();
        }
        let is_due = |state: &RuleState| state.windows.due().is_none_or(|due| due <= now);
        let due = self.rules.iter().filter(|(_, state)| is_due(state));
        let due: Vec<String> = due.map(|(name, _)| name.clone()).collect();
        for name in due {
            self.close_due(&name, now, &mut changes);
        }
        let rules = &self.rules;
        self.pending
            .expire(now, |rule| Some(rules.get(rule)?.rule.summary.deadline));
        changes
    }

    /// Closes all windows of all rules.
    pub fn close_windows(&mut self, wall: Time, reason: CloseReason) -> Vec<RuleChange> {
        let mut changes = Vec::new();
        let now = self.advance_clock(wall, &mut changes);
        let names: Vec<String> = self.rules.keys().cloned().collect();
        for name in names {
            self.close_rule_windows(&name, now, reason, &mut changes);
        }
        changes
    }

    /// When [`RuleEngine::tick`] has something to do next.
    pub fn due(&self) -> Option<Time> {
        let windows = self.rules.values().filter_map(|state| state.windows.due());
        windows.chain(self.clock.hold_end()).min()
    }

    /// When the next window is due whose event needs a summary.
    pub fn summary_due(&self) -> Option<Time> {
        let summarised = self.rules.values().filter(|state| state.rule.needs_summary());
        summarised.filter_map(|state| state.windows.due()).min()
    }

    /// The oldest event that is published with facts only: it needs no summary, or its deadline has passed.
    pub fn take_facts_only(&mut self) -> Option<PendingEvent> {
        self.pending.take_facts_only()
    }

    /// The oldest event that needs a summary.
    pub fn take_pending_summary(&mut self) -> Option<PendingSummary> {
        let pending = self.pending.take_pending_summary()?;
        let state = self.rules.get(&pending.event.rule);
        let rule = state.map(|state| Arc::clone(&state.rule));
        let deadline = rule.as_ref().map_or(Duration::ZERO, |rule| rule.summary.deadline);
        let left = pending.left(self.clock.latest().unwrap_or(pending.since), deadline);
        Some(PendingSummary { pending, rule, left })
    }

    /// Removes an event that was taken: it is among the messages to be published.
    pub fn complete_event(&mut self, event: &Event) -> RuleChange {
        self.pending.complete(&event.event_id);
        self.counters.events += 1;
        self.counters.failed += u64::from(event.error.is_some());
        RuleChange::RemovePendingEvent {
            event_id: event.event_id.clone(),
        }
    }

    /// Counters and gauges of the rules.
    pub fn counters(&self) -> RuleCounters {
        let states = self.rules.values();
        RuleCounters {
            rules: self.rules.len(),
            held: states.clone().map(|state| state.messages.len()).sum(),
            held_bytes: states.clone().map(|state| state.messages.bytes()).sum(),
            window_bytes: states.map(|state| state.windows.held_bytes()).sum(),
            waiting: self.pending.len(),
            ..self.counters
        }
    }

    /// Counts a message that the broker has delivered again.
    pub fn redelivered(&mut self) {
        self.counters.redelivered += 1;
    }
}

/// Compiles a rule's condition and template, and returns its extractor.
///
/// # Errors
/// The condition or the template is wrong; one line.
pub(crate) fn check(rule: &Rule) -> Result<Extractor, String> {
    let wrong = |fault: String| format!("rule \"{}\": {fault}", rule.name);
    summary::Template::compile(&rule.summary.prompt, &rule.fields)
        .map_err(|fault| wrong(fault.to_string()))?;
    Extractor::new(rule).map_err(wrong)
}
