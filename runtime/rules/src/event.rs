//! The event of a window.

use std::sync::Arc;

use super::{CloseReason, FieldFacts, Output, Time};
use phi_edge_job::{ErrorCode, FinishReason};

/// The event of a closed window: its facts and their summary. A field that is added needs a default in the store, for the
/// rows of earlier versions.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// The same for every copy of this event.
    pub event_id: String,
    /// The rule's name.
    pub rule: String,
    /// The group; empty where the rule has none.
    pub group: String,
    /// The window.
    pub window: EventWindow,
    /// Facts by field, in the rule's order.
    pub stats: Vec<(String, FieldFacts)>,
    /// The summary; `None` if there is none.
    pub text: Option<String>,
    /// Numbers of the text that neither facts nor messages support; `None` if they were not checked.
    pub unsupported_numbers: Option<Vec<String>>,
    /// The text as JSON, where the rule asks for it: a JSON document.
    pub data: Option<String>,
    /// The reason for which there is no text.
    pub error: Option<EventError>,
    /// The reason for which the text ended.
    pub finish_reason: Option<FinishReason>,
    /// Tokens of all prompts.
    pub prompt_tokens: usize,
    /// Generated tokens of all prompts.
    pub completion_tokens: usize,
    /// Prompt tokens taken from the prefix cache.
    pub cached_tokens: usize,
    /// The model.
    pub model: Arc<str>,
}

/// An event and its destination.
#[derive(Debug, Clone, PartialEq)]
pub struct Published {
    /// The event.
    pub event: Event,
    /// Its destination, placeholders filled in.
    pub output: Output,
}

impl Published {
    /// Its cost in memory, and about as much on the disk, in bytes.
    pub fn cost(&self) -> u64 {
        const EVENT_BYTES: usize = 1024;
        const FIELD_BYTES: usize = 320;
        const VALUE_BYTES: usize = 40;
        let event = &self.event;
        let texts = [&event.text, &event.data].into_iter().flatten().map(String::len);
        let fields = event.stats.iter().map(|(name, facts)| {
            let values = facts.values.iter().map(|(text, _)| VALUE_BYTES + text.len());
            FIELD_BYTES + name.len() + values.sum::<usize>()
        });
        let error = event.error.as_ref().map_or(0, |error| error.message.len());
        let names = event.group.len() + self.output.topic.len() + error;
        (EVENT_BYTES + names + texts.sum::<usize>() + fields.sum::<usize>()) as u64
    }
}

/// The window of an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventWindow {
    /// Its start.
    pub start: Time,
    /// Its end.
    pub end: Time,
    /// Why it closed.
    pub reason: CloseReason,
    /// Messages that count.
    pub messages: u64,
    /// Late messages since the last event of the group; they count in no window.
    pub late: u64,
    /// Messages that count in the facts and that the model was not shown.
    pub left_out: u64,
    /// Messages that were dropped because the store was full or failing, since the last event of the rule.
    pub dropped: u64,
    /// Whether it closed well after it was due, as after a downtime.
    pub closed_late: bool,
}

/// The reason for which an event has no text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventError {
    /// For programs.
    pub code: ErrorCode,
    /// For people: one line.
    pub message: String,
}
