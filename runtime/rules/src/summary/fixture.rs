//! A window for tests.

use jiff::Timestamp;
use jiff::tz::TimeZone;

use super::{PromptMessage, WindowFacts};
use crate::{EventWindow, FieldFacts, Time, Value};

pub(super) struct Fixture {
    pub(super) zone: TimeZone,
    pub(super) window: EventWindow,
    pub(super) stats: Vec<(String, FieldFacts)>,
    pub(super) records: Vec<PromptMessage>,
}

impl Fixture {
    pub(super) fn window_facts(&self) -> WindowFacts<'_> {
        WindowFacts {
            rule: "alarms",
            group: "mixer-07",
            zone: &self.zone,
            window: &self.window,
            stats: &self.stats,
            pictures: &[],
        }
    }
}

pub(super) fn time(text: &str) -> Time {
    Time(text.parse::<Timestamp>().unwrap().as_millisecond())
}

/// A morning shift in Berlin with three readings of a mixer.
pub(super) fn window() -> Fixture {
    let readings = [
        ("06:15", 68.9, "ok"),
        ("06:20", 81.6, "hot"),
        ("06:25", 71.5, "ok"),
    ];
    let at = |clock: &str| time(&format!("2026-03-02T{clock}:00+01:00"));
    let records = readings
        .iter()
        .map(|&(clock, value, state)| {
            let payload = format!(r#"{{"value":{value},"state":"{state}"}}"#);
            let fields = vec![
                ("state".to_owned(), Value::Text(state.to_owned())),
                ("value".to_owned(), Value::Number(value)),
            ];
            PromptMessage::new(
                at(clock),
                "plant/mixer-07/temperature",
                payload.as_bytes(),
                fields,
            )
        })
        .collect();
    let common = FieldFacts {
        count: 3,
        from: Some(at("06:15")),
        to: Some(at("06:25")),
        ..FieldFacts::default()
    };
    let state = FieldFacts {
        first: Some(Value::Text("ok".into())),
        last: Some(Value::Text("ok".into())),
        values: vec![("ok".into(), 2), ("hot".into(), 1)],
        ..common.clone()
    };
    let value = FieldFacts {
        min: Some(68.9),
        max: Some(81.6),
        mean: Some(74.0),
        first: Some(Value::Number(68.9)),
        last: Some(Value::Number(71.5)),
        rate: Some(2.6 / 600.0),
        ..common
    };
    Fixture {
        zone: TimeZone::get("Europe/Berlin").unwrap(),
        window: EventWindow {
            start: at("06:00"),
            end: at("14:00"),
            reason: crate::CloseReason::Due,
            messages: 3,
            late: 1,
            left_out: 0,
            dropped: 0,
            closed_late: false,
        },
        stats: vec![("state".into(), state), ("value".into(), value)],
        records,
    }
}
