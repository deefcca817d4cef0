//! The changes that the engine hands to the store, and the state that it is restored from.

use std::time::Duration;

use super::summary::PromptMessage;
use super::{Checkpoint, Event, Output, ShownPicture, Time, Value};

/// A message of a window that is still open. A message that several rules take is kept once for each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeptMessage {
    /// Its number in the order of arrival, unique in a store.
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
    /// Its cost in memory and on the disk, in bytes: its content and an allowance for its row.
    pub fn cost(&self) -> u64 {
        const ROW_BYTES: usize = 128;
        (ROW_BYTES + self.group.len() + self.topic.len() + self.payload.len()) as u64
    }
}

/// A message that the model is shown.
#[derive(Debug, Clone, PartialEq)]
pub struct ShownMessage {
    /// Its timestamp: its arrival or its event time.
    pub time: Time,
    /// Its topic.
    pub topic: String,
    /// Its payload as text, cut to the most that a prompt takes of one message.
    pub payload: String,
    /// The values of the rule's fields, by name.
    pub fields: Vec<(String, Value)>,
}

impl ShownMessage {
    /// Its cost in memory, and about as much on the disk, in bytes.
    pub fn cost(&self) -> u64 {
        const ROW_BYTES: usize = 64;
        let fields = self.fields.iter().map(|(name, value)| {
            name.len()
                + match value {
                    Value::Number(_) => size_of::<f64>(),
                    Value::Text(text) => text.len(),
                }
        });
        (ROW_BYTES + self.topic.len() + self.payload.len() + fields.sum::<usize>()) as u64
    }

    /// The message in the form of prompts.
    pub fn prompt_message(&self) -> PromptMessage {
        PromptMessage::new(
            self.time,
            &self.topic,
            self.payload.as_bytes(),
            self.fields.clone(),
        )
    }
}

/// The event of a closed window that is not published yet.
#[derive(Debug, Clone, PartialEq)]
pub struct PendingEvent {
    /// The event with its facts; its summary is missing.
    pub event: Event,
    /// Its destination, placeholders filled in.
    pub output: Output,
    /// The messages that the model is shown, oldest first.
    pub messages: Vec<ShownMessage>,
    /// The pictures that the model is shown, oldest first.
    pub pictures: Vec<ShownPicture>,
    /// When the window was closed: its rule's deadline counts from then.
    pub since: Time,
}

impl PendingEvent {
    /// The time left until its rule's deadline.
    pub fn left(&self, now: Time, deadline: Duration) -> Duration {
        deadline.saturating_sub(now.since(self.since))
    }

    /// Its cost in memory and on the disk, in bytes: its messages and pictures, and an allowance for the facts.
    pub fn cost(&self) -> u64 {
        const FACTS_BYTES: u64 = 1024;
        let pictures = self.pictures.iter().map(ShownPicture::cost).sum::<u64>();
        FACTS_BYTES + pictures + self.messages.iter().map(ShownMessage::cost).sum::<u64>()
    }
}

/// The close of a window. Its parts are stored atomically.
#[derive(Debug, Clone, PartialEq)]
pub struct WindowClose {
    /// The rule.
    pub rule: String,
    /// The group.
    pub group: String,
    /// The group's checkpoint after the close.
    pub checkpoint: Checkpoint,
    /// The numbers of the messages that no open window needs any more.
    pub forget: Vec<u64>,
    /// The event; `None` if none is published.
    pub pending: Option<PendingEvent>,
}

/// A change of the stored state of rules.
#[derive(Debug, Clone)]
pub enum RuleChange {
    /// Keeps a message of an open window.
    KeepMessage(Box<KeptMessage>),
    /// Adds a value of a rule's `dedupe`.
    AddDedupeValue {
        /// The rule.
        rule: String,
        /// The value.
        value: String,
        /// When it was seen.
        at: Time,
    },
    /// Removes values of a rule's `dedupe`.
    ForgetDedupeValues {
        /// The rule.
        rule: String,
        /// The values.
        values: Vec<String>,
    },
    /// Closes a window.
    CloseWindow(Box<WindowClose>),
    /// Replaces the checkpoint of a group.
    SaveCheckpoint {
        /// The rule.
        rule: String,
        /// The group.
        group: String,
        /// Its checkpoint.
        checkpoint: Checkpoint,
    },
    /// Removes the checkpoint of a group.
    DropCheckpoint {
        /// The rule.
        rule: String,
        /// The group.
        group: String,
    },
    /// Removes a rule, with the checkpoints of its groups and the values of its `dedupe`.
    RemoveRule {
        /// The rule.
        rule: String,
    },
    /// Adds the event of a closed window.
    AddPendingEvent(Box<PendingEvent>),
    /// Removes a pending event: it is among the messages to be published.
    RemovePendingEvent {
        /// The event.
        event_id: String,
    },
    /// Removes messages, by their numbers.
    ForgetMessages(Vec<u64>),
}

/// The stored state of rules that an earlier process left.
#[derive(Debug, Default)]
pub struct RestoredRules {
    /// In the order of their numbers.
    pub messages: Vec<KeptMessage>,
    /// Rule, group, checkpoint.
    pub checkpoints: Vec<(String, String, Checkpoint)>,
    /// Events that were not published.
    pub pending: Vec<PendingEvent>,
    /// Rule, value of `dedupe`, when it was seen.
    pub dedupe_values: Vec<(String, String, Time)>,
}

impl RuleChange {
    /// Whether it adds an event that may need a summary.
    pub fn needs_summary(&self) -> bool {
        matches!(self, Self::CloseWindow(close) if close.pending.is_some())
    }
}

impl RestoredRules {
    /// The changes that write all of it to an empty store.
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
