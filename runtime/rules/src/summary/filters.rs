//! Filters of templates, and the form of values in them.

use std::fmt::Write as _;

use minijinja::value::{Kwargs, Value};
use minijinja::{Environment, Error, ErrorKind};

use super::prompt_message::PromptMessage;
use super::window_facts::TemplateMessage;

/// Whole numbers up to here are written without a decimal point; beyond it not every whole number has an f64.
const MAX_EXACT_INTEGER: f64 = 9_007_199_254_740_992.0;

pub(super) fn add(environment: &mut Environment<'_>) {
    environment.add_filter("record", record);
    environment.add_filter("tojson", tojson);
    environment.add_filter("number", number);
    environment.add_filter("clock", clock);
    environment.add_filter("date", date);
}

/// A message as one line of JSON.
fn record(value: &Value) -> Result<String, Error> {
    let message = value
        .downcast_object_ref::<TemplateMessage>()
        .ok_or_else(|| Error::new(ErrorKind::InvalidOperation, "record takes one of the messages"))?;
    Ok(message.line.clone())
}

/// A value as JSON on one line. Unlike Jinja's own it leaves `<` and `'` alone: a prompt is no web page.
fn tojson(value: &Value) -> Result<String, Error> {
    let json = serde_json::to_string(value)
        .map_err(|error| Error::new(ErrorKind::InvalidOperation, format!("is no JSON: {error}")))?;
    Ok(one_line(&json))
}

/// A number for reading: with as many digits after the point as asked for, or up to three that say something.
/// `comma` writes a decimal comma. What is no number stays as it is.
#[allow(clippy::needless_pass_by_value, reason = "the shape of a filter")]
fn number(value: &Value, digits: Option<usize>, options: Kwargs) -> Result<Value, Error> {
    let comma: Option<bool> = options.get("comma")?;
    options.assert_all_used()?;
    let Ok(number) = f64::try_from(value.clone()) else {
        return Ok(value.clone());
    };
    let mut text = if let Some(digits) = digits {
        format!("{number:.0$}", digits.min(20))
    } else if number != 0.0 && number.abs() < 0.001 {
        format!("{number:.2e}")
    } else {
        let fixed = format!("{number:.3}");
        fixed.trim_end_matches('0').trim_end_matches('.').to_owned()
    };
    if comma == Some(true) {
        text = text.replace('.', ",");
    }
    Ok(text.into())
}

/// The time of day, `06:00`, of a time in RFC 3339.
fn clock(time: &str) -> Result<String, Error> {
    time.split_once('T')
        .and_then(|(_, clock)| clock.get(..5))
        .map(ToOwned::to_owned)
        .ok_or_else(|| Error::new(ErrorKind::InvalidOperation, "clock takes a time in RFC 3339"))
}

/// The date, `2026-03-02`, of a time in RFC 3339.
fn date(time: &str) -> Result<String, Error> {
    time.split_once('T')
        .map(|(date, _)| date.to_owned())
        .ok_or_else(|| Error::new(ErrorKind::InvalidOperation, "date takes a time in RFC 3339"))
}

/// `{"time", "topic", fields…}`, or `payload` where the rule picks no fields. A field of the name `time` or `topic`
/// stands in the message's own place.
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

fn quoted(text: &str) -> String {
    one_line(&serde_json::Value::from(text).to_string())
}

/// JSON escapes control characters below U+0020 only; the others that break or turn a line are escaped here.
fn one_line(json: &str) -> String {
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

/// A number as templates and JSON write it: whole ones without a point, as machines send them.
#[allow(clippy::cast_possible_truncation, reason = "whole and below 2^53")]
pub(super) fn number_value(number: f64) -> Value {
    if number.fract() == 0.0 && number.abs() < MAX_EXACT_INTEGER {
        Value::from(number as i64)
    } else {
        Value::from(number)
    }
}

/// A field's value in templates.
pub(super) fn field_value(value: &crate::Value) -> Value {
    match value {
        crate::Value::Number(number) => number_value(*number),
        crate::Value::Text(text) => Value::from(text.as_str()),
    }
}

#[cfg(test)]
mod tests {
    use minijinja::context;
    use proptest::prelude::*;

    use super::*;
    use crate::Time;

    #[test]
    fn numbers_times_and_json() {
        let mut environment = Environment::new();
        add(&mut environment);
        let check = |source: &str, expected: &str| {
            let time = "2026-03-02T06:00:00+01:00";
            let text = environment
                .render_str(
                    source,
                    context! { x => 21.473_66, whole => 8.0, small => 0.000_25, time },
                )
                .unwrap();
            assert_eq!(text, expected, "{source}");
        };
        check("{{ x|number }}", "21.474");
        check("{{ x|number(1) }}", "21.5");
        check("{{ x|number(1, comma=true) }}", "21,5");
        check("{{ whole|number }}", "8");
        check("{{ small|number }}", "2.50e-4");
        check("{{ none|number }}", "None");
        check("{{ 'on'|number }}", "on");
        check("{{ time|clock }} {{ time|date }}", "06:00 2026-03-02");
        check("{{ {'a': '<b>\\n'}|tojson }}", r#"{"a":"<b>\n"}"#);
    }

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
