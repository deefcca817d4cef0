//! The values of templates: messages, fields and numbers.

use std::fmt::Write as _;
use std::sync::Arc;

use minijinja::value::{Enumerator, Object, Value};

use super::prompt_message::PromptMessage;

/// The magnitude below which whole numbers are written without a decimal point: 2^53, beyond which an f64 skips some.
const MAX_EXACT_INTEGER: f64 = 9_007_199_254_740_992.0;

/// A message in templates. Its line of JSON is made once, as a window that does not fit is rendered many times.
#[derive(Debug)]
pub(super) struct TemplateMessage {
    pub(super) time: Value,
    pub(super) topic: Value,
    pub(super) payload: Value,
    pub(super) fields: Value,
    pub(super) line: String,
}

impl Object for TemplateMessage {
    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        match key.as_str()? {
            "time" => Some(self.time.clone()),
            "topic" => Some(self.topic.clone()),
            "payload" => Some(self.payload.clone()),
            "fields" => Some(self.fields.clone()),
            _ => None,
        }
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        Enumerator::Str(&["time", "topic", "payload", "fields"])
    }
}

/// A message as one line of JSON: `{"time", "topic", fields…}`, or `payload` where the rule has no fields. A field of
/// the name `time` or `topic` replaces the message's own.
pub(super) fn json_line(record: &PromptMessage, time: &str) -> String {
    let mut line = String::from("{");
    let mut pair = |name: &str, json: &str| {
        let gap = if line.len() > 1 { ", " } else { "" };
        let _ = write!(line, "{gap}{}: {json}", quoted(name));
    };
    let picked = |name: &str| record.fields().iter().any(|(field, _)| field == name);
    if !picked("time") {
        pair("time", &quoted(time));
    }
    if !picked("topic") {
        pair("topic", &quoted(record.topic()));
    }
    for (name, value) in record.fields() {
        match value {
            crate::Value::Number(number) => pair(name, &number_value(*number).to_string()),
            crate::Value::Text(text) => pair(name, &quoted(text)),
        }
    }
    if record.fields().is_empty() {
        pair("payload", &quoted(record.payload()));
    }
    line.push('}');
    line
}

/// A field's value in templates.
pub(super) fn field_value(value: &crate::Value) -> Value {
    match value {
        crate::Value::Number(number) => number_value(*number),
        crate::Value::Text(text) => Value::from(text.as_str()),
    }
}

/// A number in templates and JSON: whole ones without a point, as machines send them.
#[allow(clippy::cast_possible_truncation, reason = "whole and below 2^53")]
pub(super) fn number_value(number: f64) -> Value {
    if number.fract() == 0.0 && number.abs() < MAX_EXACT_INTEGER {
        Value::from(number as i64)
    } else {
        Value::from(number)
    }
}

fn quoted(text: &str) -> String {
    one_line(&serde_json::Value::from(text).to_string())
}

/// JSON on one line. JSON escapes control characters below U+0020 only; the others that break a line or change its
/// direction are escaped here.
pub(super) fn one_line(json: &str) -> String {
    let breaks = |c: char| matches!(c, '\u{7F}'..='\u{9F}' | '\u{2028}'..='\u{202E}' | '\u{2066}'..='\u{2069}' | '\u{200E}' | '\u{200F}' | '\u{61C}');
    if !json.contains(breaks) {
        return json.to_owned();
    }
    let mut line = String::with_capacity(json.len());
    for c in json.chars() {
        if breaks(c) {
            let _ = write!(line, "\\u{:04x}", u32::from(c));
        } else {
            line.push(c);
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::Time;

    #[test]
    fn lines() {
        let check = |fields: Vec<(&str, crate::Value)>, expected: &str| {
            let fields = fields
                .into_iter()
                .map(|(name, value)| (name.to_owned(), value))
                .collect();
            let record = PromptMessage::new(Time(0), "a/b", b"raw\n\"text\"", fields);
            assert_eq!(json_line(&record, "06:00:00"), expected);
        };
        check(
            vec![],
            r#"{"time": "06:00:00", "topic": "a/b", "payload": "raw\n\"text\""}"#,
        );
        check(
            vec![
                ("n", crate::Value::Number(3.0)),
                ("v", crate::Value::Number(21.5)),
            ],
            r#"{"time": "06:00:00", "topic": "a/b", "n": 3, "v": 21.5}"#,
        );
        check(
            vec![("time", crate::Value::Text("now".into()))],
            r#"{"topic": "a/b", "time": "now"}"#,
        );
    }

    proptest! {
        /// No message breaks out of its line, and the line says what the message said.
        #[test]
        fn a_message_stays_in_its_line(payload in "(\\PC|\r|\n|\u{85}|\u{2028}|\u{202E}|[\"\\\\}{]){0,40}") {
            let record = PromptMessage::new(Time(0), "t", payload.as_bytes(), Vec::new());
            let line = json_line(&record, "06:00:00");
            let breaks = ['\n', '\r', '\u{85}', '\u{2028}', '\u{2029}', '\u{202E}'];
            prop_assert!(!line.contains(breaks));
            let read: serde_json::Value = serde_json::from_str(&line).unwrap();
            prop_assert_eq!(read["payload"].as_str(), Some(record.payload()));
        }
    }
}
