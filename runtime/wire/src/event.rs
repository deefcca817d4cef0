//! The JSON of a rule's event.

use std::collections::BTreeMap;

use phi_edge_rules::{Event, FieldFacts, Time, Value};
use serde::Serialize;
use serde_json::value::RawValue;

use crate::json::to_json;
use crate::outcome::{ErrorBody, Usage};

/// Returns the payload of an event of the node `node`.
pub fn encode_event(event: &Event, node: &str) -> Vec<u8> {
    let window = &event.window;
    let body = EventBody {
        event_id: &event.event_id,
        rule: &event.rule,
        group: &event.group,
        window: WindowBody {
            start: rfc3339(window.start),
            end: rfc3339(window.end),
            reason: window.reason.as_str(),
            messages: window.messages,
            late: window.late,
            left_out: window.left_out,
            dropped: window.dropped,
            closed_late: window.closed_late,
        },
        stats: event
            .stats
            .iter()
            .map(|(name, facts)| (name.as_str(), FieldStats::of(facts)))
            .collect(),
        text: event.text.as_deref(),
        unsupported_numbers: event.unsupported_numbers.as_deref(),
        data: event
            .data
            .as_deref()
            .and_then(|data| serde_json::from_str(data).ok()),
        error: event.error.as_ref().map(|error| ErrorBody {
            code: error.code.as_str(),
            message: &error.message,
            retry_after_ms: None,
        }),
        finish_reason: event.finish_reason.map(phi_edge_api::FinishReason::as_str),
        usage: Usage {
            prompt_tokens: event.prompt_tokens,
            completion_tokens: event.completion_tokens,
            cached_tokens: event.cached_tokens,
            left_out_tokens: None,
            image_tokens: None,
        },
        model: &event.model,
        node,
    };
    to_json(&body)
}

#[derive(Serialize)]
struct EventBody<'a> {
    event_id: &'a str,
    rule: &'a str,
    group: &'a str,
    window: WindowBody,
    stats: BTreeMap<&'a str, FieldStats<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    unsupported_numbers: Option<&'a [String]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<ErrorBody<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    finish_reason: Option<&'static str>,
    usage: Usage,
    model: &'a str,
    node: &'a str,
}

#[derive(Serialize)]
struct WindowBody {
    start: String,
    end: String,
    reason: &'static str,
    messages: u64,
    late: u64,
    left_out: u64,
    dropped: u64,
    closed_late: bool,
}

/// The statistics of one field. A statistic that texts, or a single number, have not is left out.
#[derive(Serialize)]
struct FieldStats<'a> {
    count: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    min: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    mean: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    first: Option<FactValue<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    last: Option<FactValue<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rate: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    from: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    to: Option<String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    values: BTreeMap<&'a str, u64>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum FactValue<'a> {
    Number(f64),
    Text(&'a str),
}

impl<'a> FieldStats<'a> {
    fn of(facts: &'a FieldFacts) -> Self {
        let plain = |value: &'a Value| match value {
            Value::Number(number) => FactValue::Number(*number),
            Value::Text(text) => FactValue::Text(text),
        };
        Self {
            count: facts.count,
            min: facts.min,
            max: facts.max,
            mean: facts.mean,
            first: facts.first.as_ref().map(plain),
            last: facts.last.as_ref().map(plain),
            rate: facts.rate,
            from: facts.from.map(rfc3339),
            to: facts.to.map(rfc3339),
            values: facts
                .values
                .iter()
                .map(|(text, count)| (text.as_str(), *count))
                .collect(),
        }
    }
}

/// Returns a time as RFC 3339 in UTC, to the millisecond. A time beyond the calendar becomes its first or last moment.
fn rfc3339(time: Time) -> String {
    let stamp = jiff::Timestamp::from_millisecond(time.0).unwrap_or(if time.0 < 0 {
        jiff::Timestamp::MIN
    } else {
        jiff::Timestamp::MAX
    });
    format!("{stamp:.3}")
}

#[cfg(test)]
mod tests {
    use phi_edge_rules::{CloseReason, EventWindow};
    use serde_json::{Value as Json, json};

    use super::*;

    #[test]
    fn an_event_has_the_contracts_shape() {
        let facts = FieldFacts {
            count: 2,
            min: Some(1.0),
            max: Some(2.5),
            mean: Some(1.75),
            first: Some(Value::Number(1.0)),
            last: Some(Value::Number(2.5)),
            rate: Some(0.15),
            from: Some(Time(0)),
            to: Some(Time(10_000)),
            values: Vec::new(),
        };
        let event_of = |text: Option<&str>| Event {
            event_id: "b-1".into(),
            rule: "alarms".into(),
            group: "3".into(),
            window: EventWindow {
                start: Time(0),
                end: Time(60_000),
                reason: CloseReason::Due,
                messages: 2,
                late: 1,
                left_out: 0,
                dropped: 0,
                closed_late: false,
            },
            stats: vec![("value".into(), facts.clone())],
            text: text.map(str::to_owned),
            unsupported_numbers: Some(vec!["9".into()]),
            data: Some("{\"a\":1.50}".into()),
            error: None,
            finish_reason: None,
            prompt_tokens: 5,
            completion_tokens: 2,
            cached_tokens: 1,
            model: "phi".into(),
        };
        let encoded: Json =
            serde_json::from_slice(&encode_event(&event_of(Some("hot")), "box")).expect("JSON");
        assert_eq!(
            encoded,
            json!({"event_id":"b-1","rule":"alarms","group":"3",
                "window":{"start":"1970-01-01T00:00:00.000Z","end":"1970-01-01T00:01:00.000Z","reason":"due",
                    "messages":2,"late":1,"left_out":0,"dropped":0,"closed_late":false},
                "stats":{"value":{"count":2,"min":1.0,"max":2.5,"mean":1.75,"first":1.0,"last":2.5,"rate":0.15,
                    "from":"1970-01-01T00:00:00.000Z","to":"1970-01-01T00:00:10.000Z"}},
                "text":"hot","unsupported_numbers":["9"],"data":{"a":1.50},
                "usage":{"prompt_tokens":5,"completion_tokens":2,"cached_tokens":1},"model":"phi","node":"box"})
        );
        let without: Json = serde_json::from_slice(&encode_event(&event_of(None), "box")).expect("JSON");
        assert_eq!(without.get("text"), None);
    }
}
