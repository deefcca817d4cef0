//! Events as the file holds them, with the field names spelt out like those of [`super::record`].

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use phi_edge_job::{ErrorCode, FinishReason};
use phi_edge_rules::changes::{PendingEvent, ShownMessage};
use phi_edge_rules::{
    Checkpoint, CloseReason, Event, EventError, EventWindow, FieldFacts, Output, PeriodRemainder,
    ShownPicture, Time, Value,
};

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

    /// Returns `None` for values that this version does not know.
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

/// The row of an event that waits for its summary.
#[derive(Serialize, Deserialize)]
pub(super) struct PendingRow {
    #[serde(flatten)]
    event: EventRow,
    /// The time at which its window was closed; `None` in rows of earlier versions.
    since: Option<i64>,
    /// The pictures that the model is shown; none in rows of earlier versions.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pictures: Vec<PictureRow>,
}

/// A picture that the model is shown, with its file in base64.
#[derive(Serialize, Deserialize)]
struct PictureRow {
    time: i64,
    topic: String,
    file: String,
}

impl PictureRow {
    fn of(picture: &ShownPicture) -> Self {
        Self {
            time: picture.time.0,
            topic: picture.topic.clone(),
            file: STANDARD.encode(&picture.file),
        }
    }

    fn picture(self) -> Option<ShownPicture> {
        Some(ShownPicture {
            time: Time(self.time),
            topic: self.topic,
            file: STANDARD.decode(self.file).ok()?.into(),
        })
    }
}

impl PendingRow {
    pub(super) fn of(pending: &PendingEvent) -> Self {
        Self {
            event: EventRow::of(&pending.event),
            since: Some(pending.since.0),
            pictures: pending.pictures.iter().map(PictureRow::of).collect(),
        }
    }

    /// Returns the pending event with this destination and these messages; `None` for values that this version does not
    /// know.
    /// Returns the sizes of its pictures' files, in bytes.
    pub(super) fn picture_files(&self) -> impl Iterator<Item = u64> {
        let files = self.pictures.iter().map(|picture| &picture.file);
        // Base64 with padding: three bytes for four characters.
        files.map(|file| {
            let padding = file.bytes().rev().take_while(|byte| *byte == b'=').count();
            (file.len() / 4 * 3).saturating_sub(padding) as u64
        })
    }

    pub(super) fn pending(self, output: OutputRow, shown: Vec<ShownRow>) -> Option<PendingEvent> {
        Some(PendingEvent {
            event: self.event.event()?,
            output: output.output(),
            messages: shown.into_iter().map(ShownRow::shown).collect(),
            pictures: self
                .pictures
                .into_iter()
                .filter_map(PictureRow::picture)
                .collect(),
            since: Time(self.since.unwrap_or_else(super::wall_ms)),
        })
    }
}

fn closing(word: &str) -> Option<CloseReason> {
    [
        CloseReason::Due,
        CloseReason::Early,
        CloseReason::Full,
        CloseReason::Absence,
        CloseReason::Clock,
        CloseReason::Reload,
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
    /// The start and the end of each.
    splits: Vec<(i64, i64)>,
    cool_until: Option<i64>,
    last_seen: Option<i64>,
    absent: bool,
    late: u64,
    empty_from: Option<i64>,
}

impl MarkRow {
    pub(super) fn of(checkpoint: &Checkpoint) -> Self {
        Self {
            seq: checkpoint.seq,
            closed_until: checkpoint.closed_until.map(|time| time.0),
            splits: checkpoint
                .remainders
                .iter()
                .map(|split| (split.from.0, split.end.0))
                .collect(),
            cool_until: checkpoint.cool_until.map(|time| time.0),
            last_seen: checkpoint.last_seen.map(|time| time.0),
            absent: checkpoint.absent,
            late: checkpoint.late,
            empty_from: checkpoint.empty_from.map(|time| time.0),
        }
    }

    pub(super) fn checkpoint(&self) -> Checkpoint {
        let split = |(from, end): &(i64, i64)| PeriodRemainder {
            from: Time(*from),
            end: Time(*end),
        };
        Checkpoint {
            seq: self.seq,
            closed_until: self.closed_until.map(Time),
            remainders: self.splits.iter().map(split).collect(),
            cool_until: self.cool_until.map(Time),
            last_seen: self.last_seen.map(Time),
            absent: self.absent,
            late: self.late,
            empty_from: self.empty_from.map(Time),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A row as earlier versions wrote it.
    const EARLIER: &str = r#"{"event_id":"e1","rule":"r","group":"g","start":1,"end":2,"reason":"due","messages":1,
        "late":0,"left_out":0,"dropped":0,"closed_late":false,"stats":[["t",{"count":1,"min":0.1,"max":0.1,"mean":0.1,
        "first":0.1,"last":"x","rate":null,"from":1,"to":1,"values":[]}]],"text":null,"unsupported_numbers":null,
        "data":null,"error":null,"finish_reason":null,"prompt_tokens":0,"completion_tokens":0,"cached_tokens":0,
        "model":""}"#;

    #[test]
    fn an_event_of_an_earlier_version_waits_from_now_on() {
        let before = super::super::wall_ms();
        let row: PendingRow = serde_json::from_str(EARLIER).unwrap();
        let output = Output {
            topic: String::new(),
            qos: 0,
            expiry: None,
            retain: false,
        };
        let mut pending = row.pending(OutputRow::of(&output), Vec::new()).unwrap();
        assert!(pending.since >= Time(before));
        let event = &pending.event;
        assert_eq!(event.stats[0].1.min, Some(0.1));
        assert_eq!(event.stats[0].1.last, Some(Value::Text("x".to_owned())));
        pending.since = Time(5);
        pending.pictures = vec![ShownPicture {
            time: Time(4),
            topic: "gate".to_owned(),
            file: [0xFF, 0xD8, 0xFF, 0].as_slice().into(),
        }];
        let written = serde_json::to_string(&PendingRow::of(&pending)).unwrap();
        let row: PendingRow = serde_json::from_str(&written).unwrap();
        assert_eq!(row.pending(OutputRow::of(&output), Vec::new()), Some(pending));
    }
}
