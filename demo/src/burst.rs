//! What simulated machines say: readings, and a fault of one of them.

use serde_json::{Value, json};

/// What counts as too warm, in °C; it stands in the rule, too.
pub(crate) const LIMIT: f64 = 75.0;

/// The rule of the demonstration: a digest of each machine's readings, at once when one is too warm.
pub(crate) const RULE: &str = r#"topics = ["plant/+/temperature"]
group_by = "topic:1"                     # a digest for each machine
fields = { temperature = "/temperature" }
template = "demo-digest"                 # the form that the demonstration model knows

[window]
kind = "session"
gap = "2m"                               # silence that ends a burst …
early = "temperature > 80"               # … and what ends it at once
cool_down = "1m"
"#;

/// One message of a machine.
pub(crate) struct Reading {
    device: &'static str,
    celsius: f64,
}

impl Reading {
    pub(crate) fn topic(&self) -> String {
        format!("plant/{}/temperature", self.device)
    }

    pub(crate) fn payload(&self) -> Value {
        json!({"temperature": self.celsius})
    }

    pub(crate) fn is_fault(&self) -> bool {
        self.celsius > LIMIT
    }
}

/// Three machines; one runs hot.
pub(crate) fn readings() -> Vec<Reading> {
    [
        ("pump-03", 41.2),
        ("mixer-07", 68.9),
        ("oven-12", 61.5),
        ("mixer-07", 73.4),
        ("pump-03", 41.8),
        ("oven-12", 61.1),
        ("mixer-07", 78.2),
        ("pump-03", 41.5),
        ("mixer-07", 81.6),
    ]
    .map(|(device, celsius)| Reading { device, celsius })
    .into()
}
