//! What a rule produced.

use std::sync::Arc;

use super::{CloseReason, FieldFacts, Output, Time};
use phi_edge_job::{ErrorCode, FinishReason};

/// What is published when a window ends.
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
    /// The model's words; none if it failed.
    pub text: Option<String>,
    /// Numbers of the text that neither facts nor messages hold; none if they were not checked.
    pub unsupported_numbers: Option<Vec<String>>,
    /// The text as JSON, where the rule asks for it: a JSON document.
    pub data: Option<String>,
    /// Why there is no text.
    pub error: Option<EventError>,
    /// Why the text ended.
    pub finish_reason: Option<FinishReason>,
    /// Tokens of all prompts.
    pub prompt_tokens: usize,
    /// New tokens of all answers.
    pub completion_tokens: usize,
    /// Prompt tokens that needed no work.
    pub cached_tokens: usize,
    /// The model.
    pub model: Arc<str>,
}

/// An event on its way out.
#[derive(Debug, Clone, PartialEq)]
pub struct Published {
    /// What it says.
    pub event: Event,
    /// Where it goes, placeholders filled in.
    pub output: Output,
}

impl Published {
    /// What it costs in memory, and about as much on the disk, in bytes.
    pub fn cost(&self) -> u64 {
        const EVENT: usize = 1024;
        const FIELD: usize = 320;
        const VALUE: usize = 40;
        let event = &self.event;
        let texts = [&event.text, &event.data].into_iter().flatten().map(String::len);
        let fields = event.stats.iter().map(|(name, facts)| {
            let values = facts.values.iter().map(|(text, _)| VALUE + text.len());
            FIELD + name.len() + values.sum::<usize>()
        });
        let error = event.error.as_ref().map_or(0, |error| error.message.len());
        let names = event.group.len() + self.output.topic.len() + error;
        (EVENT + names + texts.sum::<usize>() + fields.sum::<usize>()) as u64
    }
}

/// The window of an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventWindow {
    /// Its start.
    pub start: Time,
    /// Its end.
    pub end: Time,
    /// Why it ended.
    pub reason: CloseReason,
    /// Messages that count.
    pub messages: u64,
    /// Messages that came after their window had ended, since the last event of the group; they count in no window.
    pub late: u64,
    /// Messages that count in the facts and that the model was not shown.
    pub left_out: u64,
    /// Messages that were dropped because the store was full or failing, since the last event of the rule.
    pub dropped: u64,
    /// It ended while nobody watched, and is published late.
    pub closed_late: bool,
}

/// Why a window has no text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventError {
    /// For programs.
    pub code: ErrorCode,
    /// For people: one line.
    pub message: String,
}
