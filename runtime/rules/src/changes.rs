//! What of rules outlives the process.

use std::time::Duration;

use super::summary::PromptMessage;
use super::{Checkpoint, Event, Output, Time, Value};

/// A message of a window that is still open. A message that several rules take is kept once for each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeptMessage {
    /// Who came first; no two of a store have the same.
    pub seq: u64,
    /// The rule that took it.
    pub rule: String,
    /// The group that it counts in.
    pub group: String,
    /// When it arrived.
    pub arrived: Time,
    /// Its topic.
    pub topic: String,
    /// Its payload, as it came.
    pub payload: Vec<u8>,
}

impl KeptMessage {
    /// What it counts for in memory and on the disk, in bytes: its content and some for its row.
    pub fn cost(&self) -> u64 {
        const ROW: usize = 128;
        (ROW + self.group.len() + self.topic.len() + self.payload.len()) as u64
    }
}

/// A message as the model is shown it.
#[derive(Debug, Clone, PartialEq)]
pub struct ShownMessage {
    /// Its time: of arrival, or of its time field.
    pub time: Time,
    /// Its topic.
    pub topic: String,
    /// Its payload as text, cut to what a prompt takes of one message.
    pub payload: String,
    /// What the rule's fields hold, by name.
    pub fields: Vec<(String, Value)>,
}

impl ShownMessage {
    /// What it costs in memory, and about as much on the disk, in bytes.
    pub fn cost(&self) -> u64 {
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
    pub fn prompt_message(&self) -> PromptMessage {
        PromptMessage::new(
            self.time,
            &self.topic,
            self.payload.as_bytes(),
            self.fields.clone(),
        )
    }
}

/// A window that has ended and whose event is not published yet.
#[derive(Debug, Clone, PartialEq)]
pub struct PendingEvent {
    /// The facts; its words are missing.
    pub event: Event,
    /// Where it goes, placeholders filled in.
    pub output: Output,
    /// What the model is shown, oldest first.
    pub messages: Vec<ShownMessage>,
    /// When the window was ended: its rule's deadline counts from then.
    pub since: Time,
}

impl PendingEvent {
    /// What is left of its rule's deadline.
    pub fn left(&self, now: Time, deadline: Duration) -> Duration {
        deadline.saturating_sub(now.since(self.since))
    }

    /// What it costs in memory and on the disk, in bytes: what the model is to be shown, and some for the facts.
    pub fn cost(&self) -> u64 {
        const FACTS: u64 = 1024;
        FACTS + self.messages.iter().map(ShownMessage::cost).sum::<u64>()
    }
}

/// A window's end, as it is stored: in one piece.
#[derive(Debug, Clone, PartialEq)]
pub struct WindowClose {
    /// The rule.
    pub rule: String,
    /// The group.
    pub group: String,
    /// What is known of the group beside its messages, from now on.
    pub checkpoint: Checkpoint,
    /// Messages that no open window needs any more.
    pub forget: Vec<u64>,
    /// What is to be published; none where nothing is.
    pub pending: Option<PendingEvent>,
}

/// One change of what is kept of rules.
#[derive(Debug, Clone)]
pub enum RuleChange {
    /// A message has its place in a window.
    KeepMessage(Box<KeptMessage>),
    /// A value of a rule's `dedupe`.
    AddDedupeValue {
        /// The rule.
        rule: String,
        /// The value.
        value: String,
        /// When it was seen.
        at: Time,
    },
    /// Values of a rule's `dedupe` that are remembered no longer.
    ForgetDedupeValues {
        /// The rule.
        rule: String,
        /// The values.
        values: Vec<String>,
    },
    /// A window has ended.
    CloseWindow(Box<WindowClose>),
    /// What is known of a group beside its messages.
    SaveCheckpoint {
        /// The rule.
        rule: String,
        /// The group.
        group: String,
        /// What is known of it.
        checkpoint: Checkpoint,
    },
    /// The group is forgotten.
    DropCheckpoint {
        /// The rule.
        rule: String,
        /// The group.
        group: String,
    },
    /// The rule is gone, and with it all that is known of its groups and of its `dedupe`.
    RemoveRule {
        /// The rule.
        rule: String,
    },
    /// The event of a window that has ended.
    AddPendingEvent(Box<PendingEvent>),
    /// The event is among the messages to be published.
    RemovePendingEvent {
        /// The event.
        event_id: String,
    },
    /// Messages are kept no longer.
    ForgetMessages(Vec<u64>),
}

/// All that an earlier process left.
#[derive(Debug, Default)]
pub struct RestoredRules {
    /// In the order of their numbers.
    pub messages: Vec<KeptMessage>,
    /// Rule, group, what is known of it.
    pub checkpoints: Vec<(String, String, Checkpoint)>,
    /// Events that were not published.
    pub pending: Vec<PendingEvent>,
    /// Rule, value, when.
    pub dedupe_values: Vec<(String, String, Time)>,
}

impl RuleChange {
    /// Whether an event waits for its words since.
    pub fn needs_summary(&self) -> bool {
        matches!(self, Self::CloseWindow(close) if close.pending.is_some())
    }
}

impl RestoredRules {
    /// The changes that write all of it anew.
    pub fn changes(&self) -> Vec<RuleChange> {
        let messages = self
            .messages
            .iter()
            .map(|message| RuleChange::KeepMessage(Box::new(message.clone())));
        let checkpoints =
            self.checkpoints
                .iter()
                .map(|(rule, group, checkpoint)| RuleChange::SaveCheckpoint {
                    rule: rule.clone(),
                    group: group.clone(),
                    checkpoint: checkpoint.clone(),
                });
        let pending = self
            .pending
            .iter()
            .map(|pending| RuleChange::AddPendingEvent(Box::new(pending.clone())));
        let dedupe_values = self
            .dedupe_values
            .iter()
            .map(|(rule, value, at)| RuleChange::AddDedupeValue {
                rule: rule.clone(),
                value: value.clone(),
                at: *at,
            });
        messages
            .chain(checkpoints)
            .chain(pending)
            .chain(dedupe_values)
            .collect()
    }
}
