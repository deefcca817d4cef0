//! The facts of a window as templates see them.

use std::fmt::Write as _;
use std::time::Duration;

use jiff::tz::TimeZone;
use minijinja::value::Value;

use super::local_time::{local_time, rfc3339};
use super::prompt_message::{MAX_PROMPT_TEXT_BYTES, PromptMessage};
use super::values::{TemplateMessage, field_value, json_line, number_value};
use crate::{Event, EventWindow, FieldFacts, Rule, ShownPicture};

/// The attributes of `window` in templates.
pub(super) const WINDOW_ATTRIBUTES: [&str; 9] = [
    "start",
    "end",
    "duration",
    "messages",
    "late",
    "left_out",
    "dropped",
    "reason",
    "closed_late",
];
/// The attributes of a field's facts in templates.
pub(super) const FACT_ATTRIBUTES: [&str; 10] = [
    "count", "min", "max", "mean", "first", "last", "rate", "from", "to", "values",
];
/// The attributes of `part` in templates.
pub(super) const PART_ATTRIBUTES: [&str; 2] = ["index", "of"];

/// A window and its computed facts: the input of a template beside the messages.
#[derive(Debug, Clone, Copy)]
pub struct WindowFacts<'a> {
    /// The rule's name.
    pub rule: &'a str,
    /// The group; empty where the rule has none.
    pub group: &'a str,
    /// The zone of the rule's local times.
    pub zone: &'a TimeZone,
    /// The window.
    pub window: &'a EventWindow,
    /// Facts by field.
    pub stats: &'a [(String, FieldFacts)],
    /// The pictures that the model is shown.
    pub pictures: &'a [ShownPicture],
}

impl<'a> WindowFacts<'a> {
    /// The facts of an event of `rule`.
    pub fn new(rule: &'a Rule, event: &'a Event) -> Self {
        Self {
            rule: &event.rule,
            group: &event.group,
            zone: &rule.window.zone,
            window: &event.window,
            stats: &event.stats,
            pictures: &[],
        }
    }

    /// The same facts with the pictures that the model is shown.
    #[must_use]
    pub fn with_pictures(self, pictures: &'a [ShownPicture]) -> Self {
        Self { pictures, ..self }
    }
}

impl WindowFacts<'_> {
    /// `group` in templates.
    pub(super) fn group_value(&self) -> Value {
        bounded(self.group)
    }

    /// `window` in templates, with `more` messages left out than the window itself says.
    pub(super) fn window_value(&self, more: u64) -> Value {
        let window = self.window;
        let pairs: [(&str, Value); WINDOW_ATTRIBUTES.len()] = [
            ("start", rfc3339(window.start, self.zone).into()),
            ("end", rfc3339(window.end, self.zone).into()),
            ("duration", duration(window.end.since(window.start)).into()),
            ("messages", window.messages.into()),
            ("late", window.late.into()),
            ("left_out", window.left_out.saturating_add(more).into()),
            ("dropped", window.dropped.into()),
            ("reason", window.reason.as_str().into()),
            ("closed_late", window.closed_late.into()),
        ];
        Value::from_iter(pairs)
    }

    /// `stats` in templates.
    pub(super) fn stats_value(&self) -> Value {
        self.stats
            .iter()
            .map(|(name, facts)| (name.as_str(), self.facts_value(facts)))
            .collect()
    }

    fn facts_value(&self, facts: &FieldFacts) -> Value {
        let number = |number: Option<f64>| number.map(number_value);
        let time = |time: Option<_>| time.map(|time| rfc3339(time, self.zone));
        let value = |value: &Option<crate::Value>| {
            value.as_ref().map(|value| match value {
                crate::Value::Text(text) => bounded(text),
                number @ crate::Value::Number(_) => field_value(number),
            })
        };
        let values: Value = facts
            .values
            .iter()
            .map(|(text, count)| Value::from_iter([("value", bounded(text)), ("count", Value::from(*count))]))
            .collect();
        let pairs: [(&str, Value); FACT_ATTRIBUTES.len()] = [
            ("count", facts.count.into()),
            ("min", number(facts.min).into()),
            ("max", number(facts.max).into()),
            ("mean", number(facts.mean).into()),
            ("first", value(&facts.first).into()),
            ("last", value(&facts.last).into()),
            ("rate", number(facts.rate).into()),
            ("from", time(facts.from).into()),
            ("to", time(facts.to).into()),
            ("values", values),
        ];
        Value::from_iter(pairs)
    }

    /// `pictures` in templates: a list of `time`, `topic` and `bytes`.
    pub(super) fn pictures_value(&self) -> Value {
        let picture = |picture: &ShownPicture| {
            Value::from_iter([
                ("time", Value::from(rfc3339(picture.time, self.zone))),
                ("topic", bounded(&picture.topic)),
                ("bytes", picture.file.len().into()),
            ])
        };
        self.pictures.iter().map(picture).collect()
    }

    /// A message in templates.
    pub(super) fn message_value(&self, record: &PromptMessage) -> Value {
        // Within a day the time of day is enough, and costs half the tokens.
        let format = if self.window.end.since(self.window.start) <= Duration::from_hours(24) {
            "%H:%M:%S"
        } else {
            "%Y-%m-%dT%H:%M:%S"
        };
        let short = local_time(record.time(), self.zone).map_or_else(
            || record.time().0.to_string(),
            |zoned| zoned.strftime(format).to_string(),
        );
        Value::from_object(TemplateMessage {
            time: rfc3339(record.time(), self.zone).into(),
            topic: record.topic().into(),
            payload: record.payload().into(),
            fields: record
                .fields()
                .iter()
                .map(|(name, value)| (name.as_str(), field_value(value)))
                .collect(),
            line: json_line(record, &short),
        })
    }
}

/// A text that comes from messages, bounded as those of [`PromptMessage`].
fn bounded(text: &str) -> Value {
    super::prompt_message::bounded_text(text.as_bytes(), MAX_PROMPT_TEXT_BYTES).into()
}

/// A duration in units that English and German share: `8 h`, `1 h 30 min`, `10 s`.
fn duration(span: Duration) -> String {
    let seconds = span.as_secs();
    let mut text = String::new();
    for (amount, unit) in [
        (seconds / 3600, "h"),
        (seconds / 60 % 60, "min"),
        (seconds % 60, "s"),
    ] {
        if amount > 0 {
            let gap = if text.is_empty() { "" } else { " " };
            let _ = write!(text, "{gap}{amount} {unit}");
        }
    }
    if text.is_empty() { "0 s".to_owned() } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        let check = |seconds, expected| assert_eq!(duration(Duration::from_secs(seconds)), expected);
        check(0, "0 s");
        check(10, "10 s");
        check(5400, "1 h 30 min");
        check(8 * 3600, "8 h");
        check(7 * 24 * 3600, "168 h");
    }
}
