//! The extraction of a rule's group, event time, fields and keys from a message.

use std::borrow::Cow;

use jiff::Timestamp;
use serde_json::{Number, Value as Json};
use sha2::{Digest, Sha256};

use super::changes::KeptMessage;
use super::condition::{Condition, Operand};
use super::picture;
use super::{PayloadFormat, Rule, Selector, Time, TimeSource, Value};

/// The most bytes of a field's text; longer ones are cut. Longer values of `dedupe` are replaced by their digest.
const MAX_TEXT_BYTES: usize = 256;
/// The most bytes of a group's name.
const MAX_GROUP_BYTES: usize = 128;

/// A message as it arrived.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RawMessage<'a> {
    pub(crate) topic: &'a str,
    pub(crate) payload: &'a [u8],
}

/// A message whose payload is parsed at most once for all rules that take it.
pub(crate) struct ParsedPayload<'a> {
    message: RawMessage<'a>,
    /// Whether the payload comes from what is kept: that of an image may then be without its content.
    kept: bool,
    json: std::cell::OnceCell<Option<Json>>,
}

/// The values that a rule extracts from a message.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Extracted {
    pub(crate) group: String,
    pub(crate) event_time: Option<Time>,
    pub(crate) early: bool,
    /// Bytes of the payload as it came.
    pub(crate) bytes: u64,
    pub(crate) values: Vec<(usize, Value)>,
    /// The value of the rule's `dedupe`, of bounded length.
    pub(crate) dedupe_value: Option<String>,
}

/// The extractor of a rule.
pub(crate) struct Extractor {
    payload: PayloadFormat,
    fields: Vec<super::Field>,
    group_by: Option<Selector>,
    dedupe: Option<Selector>,
    event_time: Option<String>,
    early: Option<Condition>,
}

impl<'a> ParsedPayload<'a> {
    pub(crate) fn new(message: RawMessage<'a>) -> Self {
        Self {
            message,
            kept: false,
            json: std::cell::OnceCell::new(),
        }
    }

    /// The payload of a kept message.
    pub(crate) fn of_kept(kept: &'a KeptMessage) -> Self {
        let message = RawMessage {
            topic: &kept.topic,
            payload: &kept.payload,
        };
        Self {
            kept: true,
            ..Self::new(message)
        }
    }

    fn json(&self) -> Option<&Json> {
        self.json
            .get_or_init(|| serde_json::from_slice(self.message.payload).ok())
            .as_ref()
    }

    /// The payload as a document of this format.
    fn document(&self, format: PayloadFormat) -> Option<Cow<'_, Json>> {
        match format {
            PayloadFormat::Auto | PayloadFormat::Json => self.json().map(Cow::Borrowed),
            PayloadFormat::Text => None,
            PayloadFormat::Image if self.kept => {
                Some(Cow::Owned(picture::facts_of_kept(self.message.payload)))
            }
            PayloadFormat::Image => Some(Cow::Owned(picture::facts(self.message.payload))),
            PayloadFormat::Number => {
                let text = std::str::from_utf8(self.message.payload).ok()?;
                number(text.trim()).map(|number| Cow::Owned(Json::Number(number)))
            }
        }
    }
}

impl Extractor {
    /// The extractor of a rule.
    ///
    /// # Errors
    /// The rule's `early` is no condition; one line.
    pub(crate) fn new(rule: &Rule) -> Result<Self, String> {
        let early = match &rule.window.early {
            None => None,
            Some(text) => Some(
                Condition::parse(text, &rule.fields)
                    .map_err(|fault| format!("`early` is no condition: {fault}"))?,
            ),
        };
        Ok(Self {
            payload: rule.payload,
            fields: rule.fields.clone(),
            group_by: rule.group_by.clone(),
            dedupe: rule.dedupe.clone(),
            event_time: match &rule.window.time {
                TimeSource::Arrival => None,
                TimeSource::Field { pointer, .. } => Some(pointer.clone()),
            },
            early,
        })
    }

    pub(crate) fn extract(&self, parsed: &ParsedPayload<'_>) -> Extracted {
        let document = parsed.document(self.payload);
        let document = document.as_deref();
        let values: Vec<(usize, Value)> = self
            .fields
            .iter()
            .enumerate()
            .filter_map(|(index, field)| Some((index, value(document?.pointer(&field.pointer)?)?)))
            .collect();
        let topic = parsed.message.topic;
        Extracted {
            group: self
                .group_by
                .as_ref()
                .map(|selector| select(selector, topic, document).unwrap_or_default())
                .map(|group| truncate(&group, MAX_GROUP_BYTES).to_owned())
                .unwrap_or_default(),
            event_time: self
                .event_time
                .as_ref()
                .and_then(|pointer| parse_event_time(document?.pointer(pointer)?)),
            early: self.is_early(document),
            bytes: self.bytes(document, parsed.message.payload),
            dedupe_value: self
                .dedupe
                .as_ref()
                .and_then(|selector| select(selector, topic, document))
                .map(|value| bounded_dedupe_value(&value)),
            values,
        }
    }

    fn is_early(&self, document: Option<&Json>) -> bool {
        let field = |index: usize| Operand::of(document?.pointer(&self.fields.get(index)?.pointer)?);
        self.early.as_ref().is_some_and(|early| early.is_met(field))
    }

    fn bytes(&self, document: Option<&Json>, payload: &[u8]) -> u64 {
        let of_image = (self.payload == PayloadFormat::Image)
            .then(|| document?.get("bytes")?.as_u64())
            .flatten();
        of_image.unwrap_or(payload.len() as u64)
    }

    /// Values by the names of their fields, for templates.
    pub(crate) fn named(&self, values: Vec<(usize, Value)>) -> Vec<(String, Value)> {
        let named = values.into_iter();
        named
            .filter_map(|(index, value)| Some((self.fields.get(index)?.name.clone(), value)))
            .collect()
    }
}

fn select(selector: &Selector, topic: &str, document: Option<&Json>) -> Option<String> {
    match selector {
        Selector::Topic(level) => topic.split('/').nth(*level).map(str::to_owned),
        Selector::Field(pointer) => match document?.pointer(pointer)? {
            Json::Null => None,
            // Whole numbers as they are: a double would make one of two long ones.
            Json::Number(number) if number.is_f64() => number.as_f64().map(|number| number.to_string()),
            Json::String(text) => Some(text.clone()),
            other => Some(other.to_string()),
        },
    }
}

/// Parses a decimal number, an integer exactly.
fn number(text: &str) -> Option<Number> {
    let whole = text.parse::<i64>().map(Number::from);
    let whole = whole.or_else(|_| text.parse::<u64>().map(Number::from));
    whole.ok().or_else(|| Number::from_f64(text.parse().ok()?))
}

/// A value of `dedupe`, or the digest of a long one.
fn bounded_dedupe_value(value: &str) -> String {
    if value.len() <= MAX_TEXT_BYTES {
        return value.to_owned();
    }
    let digest = Sha256::digest(value.as_bytes());
    let digits = digest.iter().map(|byte| format!("{byte:02x}"));
    // No text of a message begins so by chance.
    std::iter::once("\u{1e}".to_owned()).chain(digits).collect()
}

/// Numbers as such, anything else as text; `None` for null.
fn value(json: &Json) -> Option<Value> {
    Some(match json {
        Json::Null => return None,
        Json::Number(number) => Value::Number(number.as_f64().filter(|number| number.is_finite())?),
        Json::String(text) => Value::Text(truncate(text, MAX_TEXT_BYTES).to_owned()),
        Json::Bool(value) => Value::Text(value.to_string()),
        other => Value::Text(truncate(&other.to_string(), MAX_TEXT_BYTES).to_owned()),
    })
}

/// Parses RFC 3339 text, or seconds or milliseconds since 1970.
fn parse_event_time(json: &Json) -> Option<Time> {
    /// Seconds are below this until the year 5138, milliseconds above it from 1973 on.
    const SECONDS_BELOW: f64 = 1e11;
    match json {
        Json::String(text) => {
            let text = text.trim();
            let parsed: Option<Timestamp> = text.parse().ok();
            parsed.map(|timestamp| Time(timestamp.as_millisecond()))
        }
        Json::Number(number) => {
            let number = number.as_f64()?;
            let millis = if number.abs() < SECONDS_BELOW {
                number * 1000.0
            } else {
                number
            };
            // Beyond the calendar of RFC 3339 a moment means nothing.
            Timestamp::from_duration(jiff::SignedDuration::try_from_secs_f64(millis / 1000.0).ok()?)
                .ok()
                .map(|timestamp| Time(timestamp.as_millisecond()))
        }
        _ => None,
    }
}

/// The longest prefix of whole characters within `most` bytes.
pub(crate) fn truncate(text: &str, most: usize) -> &str {
    if text.len() <= most {
        return text;
    }
    let mut end = most;
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}
