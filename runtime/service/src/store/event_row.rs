//! Events as the file holds them, with the field names spelt out like those of [`super::record`].

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::reply::{ErrorCode, FinishReason};
use crate::rules::record::ShownMessage;
use crate::rules::{Closing, Event, EventError, EventWindow, FieldFacts, Mark, Output, Split, Time, Value};

#[derive(Serialize, Deserialize)]
pub(super) struct EventRow {
    event_id: String,
    rule: String,
    group: String,
    start: i64,
    end: i64,
    reason: String,
    messages: u64,
    late: u64,
    left_out: u64,
    dropped: u64,
    closed_late: bool,
    stats: Vec<(String, FactsRow)>,
    text: Option<String>,
    unsupported_numbers: Option<Vec<String>>,
    data: Option<String>,
    error: Option<(String, String)>,
    finish_reason: Option<String>,
    prompt_tokens: usize,
    completion_tokens: usize,
    cached_tokens: usize,
    model: String,
}

impl EventRow {
    pub(super) fn of(event: &Event) -> Self {
        let window = &event.window;
        Self {
            event_id: event.event_id.clone(),
            rule: event.rule.clone(),
            group: event.group.clone(),
            start: window.start.0,
            end: window.end.0,
            reason: window.reason.as_str().to_owned(),
            messages: window.messages,
            late: window.late,
            left_out: window.left_out,
            dropped: window.dropped,
            closed_late: window.closed_late,
            stats: event
                .stats
                .iter()
                .map(|(name, facts)| (name.clone(), FactsRow::of(facts)))
                .collect(),
            text: event.text.clone(),
            unsupported_numbers: event.unsupported_numbers.clone(),
            data: event.data.clone(),
            error: event
                .error
                .as_ref()
                .map(|error| (error.code.as_str().to_owned(), error.message.clone())),
            finish_reason: event.finish_reason.map(|reason| reason.as_str().to_owned()),
            prompt_tokens: event.prompt_tokens,
            completion_tokens: event.completion_tokens,
            cached_tokens: event.cached_tokens,
            model: event.model.to_string(),
        }
    }

    /// `None` for words that this version does not know.
    pub(super) fn event(self) -> Option<Event> {
        let error = match self.error {
            None => None,
            Some((code, message)) => Some(EventError {
                code: ErrorCode::from_word(&code)?,
                message,
            }),
        };
        let finish_reason = match self.finish_reason {
            None => None,
            Some(reason) => Some(FinishReason::from_word(&reason)?),
        };
        Some(Event {
            event_id: self.event_id,
            rule: self.rule,
            group: self.group,
            window: EventWindow {
                start: Time(self.start),
                end: Time(self.end),
                reason: closing(&self.reason)?,
                messages: self.messages,
                late: self.late,
                left_out: self.left_out,
                dropped: self.dropped,
                closed_late: self.closed_late,
            },
            stats: self
                .stats
                .into_iter()
                .map(|(name, facts)| (name, facts.facts()))
                .collect(),
            text: self.text,
            unsupported_numbers: self.unsupported_numbers,
            data: self.data,
            error,
            finish_reason,
            prompt_tokens: self.prompt_tokens,
            completion_tokens: self.completion_tokens,
            cached_tokens: self.cached_tokens,
            model: self.model.into(),
        })
    }
}

fn closing(word: &str) -> Option<Closing> {
    [
        Closing::Due,
        Closing::Early,
        Closing::Full,
        Closing::Absence,
        Closing::Clock,
        Closing::Reload,
    ]
    .into_iter()
    .find(|closing| closing.as_str() == word)
}

#[derive(Serialize, Deserialize)]
struct FactsRow {
    count: u64,
    min: Option<f64>,
    max: Option<f64>,
    mean: Option<f64>,
    first: Option<ValueRow>,
    last: Option<ValueRow>,
    rate: Option<f64>,
    from: Option<i64>,
    to: Option<i64>,
    values: Vec<(String, u64)>,
}

impl FactsRow {
    fn of(facts: &FieldFacts) -> Self {
        Self {
            count: facts.count,
            min: facts.min,
            max: facts.max,
            mean: facts.mean,
            first: facts.first.as_ref().map(ValueRow::of),
            last: facts.last.as_ref().map(ValueRow::of),
            rate: facts.rate,
            from: facts.from.map(|time| time.0),
            to: facts.to.map(|time| time.0),
            values: facts.values.clone(),
        }
    }

    fn facts(self) -> FieldFacts {
        FieldFacts {
            count: self.count,
            min: self.min,
            max: self.max,
            mean: self.mean,
            first: self.first.map(ValueRow::value),
            last: self.last.map(ValueRow::value),
            rate: self.rate,
            from: self.from.map(Time),
            to: self.to.map(Time),
            values: self.values,
        }
    }
}

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum ValueRow {
    Number(f64),
    Text(String),
}

impl ValueRow {
    fn of(value: &Value) -> Self {
        match value {
            Value::Number(number) => Self::Number(*number),
            Value::Text(text) => Self::Text(text.clone()),
        }
    }

    fn value(self) -> Value {
        match self {
            Self::Number(number) => Value::Number(number),
            Self::Text(text) => Value::Text(text),
        }
    }
}

#[derive(Serialize, Deserialize)]
pub(super) struct OutputRow {
    topic: String,
    qos: u8,
    expiry_ms: Option<u64>,
    retain: bool,
}

impl OutputRow {
    pub(super) fn of(output: &Output) -> Self {
        Self {
            topic: output.topic.clone(),
            qos: output.qos,
            expiry_ms: output
                .expiry
                .map(|expiry| u64::try_from(expiry.as_millis()).unwrap_or(u64::MAX)),
            retain: output.retain,
        }
    }

    pub(super) fn output(self) -> Output {
        Output {
            topic: self.topic,
            qos: self.qos,
            expiry: self.expiry_ms.map(Duration::from_millis),
            retain: self.retain,
        }
    }
}

#[derive(Serialize, Deserialize)]
pub(super) struct ShownRow {
    time: i64,
    topic: String,
    payload: String,
    fields: Vec<(String, ValueRow)>,
}

impl ShownRow {
    pub(super) fn of(shown: &ShownMessage) -> Self {
        Self {
            time: shown.time.0,
            topic: shown.topic.clone(),
            payload: shown.payload.clone(),
            fields: shown
                .fields
                .iter()
                .map(|(name, value)| (name.clone(), ValueRow::of(value)))
                .collect(),
        }
    }

    pub(super) fn shown(self) -> ShownMessage {
        ShownMessage {
            time: Time(self.time),
            topic: self.topic,
            payload: self.payload,
            fields: self
                .fields
                .into_iter()
                .map(|(name, value)| (name, value.value()))
                .collect(),
        }
    }
}

#[derive(Serialize, Deserialize)]
pub(super) struct MarkRow {
    seq: Option<u64>,
    closed_until: Option<i64>,
    /// From, end.
    splits: Vec<(i64, i64)>,
    cool_until: Option<i64>,
    last_seen: Option<i64>,
    absent: bool,
    late: u64,
    empty_from: Option<i64>,
}

impl MarkRow {
    pub(super) fn of(mark: &Mark) -> Self {
        Self {
            seq: mark.seq,
            closed_until: mark.closed_until.map(|time| time.0),
            splits: mark
                .splits
                .iter()
                .map(|split| (split.from.0, split.end.0))
                .collect(),
            cool_until: mark.cool_until.map(|time| time.0),
            last_seen: mark.last_seen.map(|time| time.0),
            absent: mark.absent,
            late: mark.late,
            empty_from: mark.empty_from.map(|time| time.0),
        }
    }

    pub(super) fn mark(&self) -> Mark {
        let split = |(from, end): &(i64, i64)| Split {
            from: Time(*from),
            end: Time(*end),
        };
        Mark {
            seq: self.seq,
            closed_until: self.closed_until.map(Time),
            splits: self.splits.iter().map(split).collect(),
            cool_until: self.cool_until.map(Time),
            last_seen: self.last_seen.map(Time),
            absent: self.absent,
            late: self.late,
            empty_from: self.empty_from.map(Time),
        }
    }
}
