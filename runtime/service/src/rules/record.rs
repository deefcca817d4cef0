//! What of rules outlives the process.

use std::time::Duration;

use super::words::Record;
use super::{Event, Mark, Output, Time, Value};

/// A message of a window that is still open. A message that several rules take is kept once for each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct KeptMessage {
    /// Who came first; no two of a store have the same.
    pub(crate) seq: u64,
    pub(crate) rule: String,
    /// The group that it counts in.
    pub(crate) group: String,
    pub(crate) arrived: Time,
    pub(crate) topic: String,
    pub(crate) payload: Vec<u8>,
}

impl KeptMessage {
    /// What it counts for in memory and on the disk, in bytes: its content and some for its row.
    pub(crate) fn cost(&self) -> u64 {
        const ROW: usize = 128;
        (ROW + self.group.len() + self.topic.len() + self.payload.len()) as u64
    }
}

/// A message as the model is shown it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ShownMessage {
    pub(crate) time: Time,
    pub(crate) topic: String,
    pub(crate) payload: String,
    /// What the rule's fields hold, by name.
    pub(crate) fields: Vec<(String, Value)>,
}

impl ShownMessage {
    pub(crate) fn cost(&self) -> u64 {
        const ROW: usize = 64;
        let fields = self.fields.iter().map(|(name, value)| {
            name.len()
                + match value {
                    Value::Number(_) => size_of::<f64>(),
                    Value::Text(text) => text.len(),
                }
        });
        (ROW + self.topic.len() + self.payload.len() + fields.sum::<usize>()) as u64
    }

    /// As prompts see it.
    pub(crate) fn record(&self) -> Record {
        Record::new(
            self.time,
            &self.topic,
            self.payload.as_bytes(),
            self.fields.clone(),
        )
    }
}

/// A window that has ended and whose event is not published yet.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct PendingEvent {
    /// The facts; its words are missing.
    pub(crate) event: Event,
    /// Where it goes, placeholders filled in.
    pub(crate) output: Output,
    /// What the model is shown, oldest first.
    pub(crate) messages: Vec<ShownMessage>,
    /// When the window was ended: its rule's deadline counts from then.
    pub(crate) since: Time,
}

impl PendingEvent {
    /// What is left of its rule's deadline.
    pub(crate) fn left(&self, now: Time, deadline: Duration) -> Duration {
        deadline.saturating_sub(now.since(self.since))
    }

    /// What it costs in memory and on the disk, in bytes: what the model is to be shown, and some for the facts.
    pub(crate) fn cost(&self) -> u64 {
        const FACTS: u64 = 1024;
        FACTS + self.messages.iter().map(ShownMessage::cost).sum::<u64>()
    }
}

/// A window's end, as it is stored: in one piece.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Ended {
    pub(crate) rule: String,
    pub(crate) group: String,
    pub(crate) mark: Mark,
    /// Messages that no open window needs any more.
    pub(crate) forget: Vec<u64>,
    /// What is to be published; none where nothing is.
    pub(crate) pending: Option<PendingEvent>,
}

/// One change of what is kept of rules.
#[derive(Debug, Clone)]
pub(crate) enum RuleChange {
    /// A message has its place in a window.
    Message(Box<KeptMessage>),
    /// A value of a rule's `dedupe`.
    Seen { rule: String, value: String, at: Time },
    /// Values of a rule's `dedupe` that are remembered no longer.
    Unseen { rule: String, values: Vec<String> },
    /// A window has ended.
    Close(Box<Ended>),
    /// What is known of a group beside its messages.
    Mark { rule: String, group: String, mark: Mark },
    /// The group is forgotten.
    Unmark { rule: String, group: String },
    /// The rule is gone, and with it all that is known of its groups and of its `dedupe`.
    Leave { rule: String },
    /// The event of a window that has ended.
    Pending(Box<PendingEvent>),
    /// The event is among the messages to be published.
    Posted { event_id: String },
    /// Messages are kept no longer.
    Forget(Vec<u64>),
}

/// All that an earlier process left.
#[derive(Debug, Default)]
pub(crate) struct RestoredRules {
    /// In the order of their numbers.
    pub(crate) messages: Vec<KeptMessage>,
    pub(crate) marks: Vec<(String, String, Mark)>,
    pub(crate) pending: Vec<PendingEvent>,
    /// Rule, value, when.
    pub(crate) seen: Vec<(String, String, Time)>,
}

impl RuleChange {
    /// Whether an event waits for its words since.
    pub(crate) fn calls_for_words(&self) -> bool {
        matches!(self, Self::Close(ended) if ended.pending.is_some())
    }
}

impl RestoredRules {
    /// The changes that write all of it anew.
    pub(crate) fn changes(&self) -> Vec<RuleChange> {
        let messages = self
            .messages
            .iter()
            .map(|message| RuleChange::Message(Box::new(message.clone())));
        let marks = self.marks.iter().map(|(rule, group, mark)| RuleChange::Mark {
            rule: rule.clone(),
            group: group.clone(),
            mark: mark.clone(),
        });
        let pending = self
            .pending
            .iter()
            .map(|pending| RuleChange::Pending(Box::new(pending.clone())));
        let seen = self.seen.iter().map(|(rule, value, at)| RuleChange::Seen {
            rule: rule.clone(),
            value: value.clone(),
            at: *at,
        });
        messages.chain(marks).chain(pending).chain(seen).collect()
    }
}
