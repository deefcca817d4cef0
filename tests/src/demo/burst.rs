//! A burst of readings and its facts: code computes them, the model words them.

use anyhow::{Context, Result};
use serde_json::{Value, json};

/// What counts as too warm, in °C.
const LIMIT: f64 = 75.0;

/// One message of a machine.
pub(crate) struct Reading {
    pub(crate) device: String,
    time: String,
    celsius: f64,
}

impl Reading {
    pub(crate) fn payload(&self) -> Value {
        json!({"time": self.time, "device": self.device, "temperature": self.celsius})
    }

    pub(crate) fn read(device: &str, payload: &[u8]) -> Result<Self> {
        let value: Value = serde_json::from_slice(payload)?;
        Ok(Self {
            device: device.to_owned(),
            time: value["time"]
                .as_str()
                .context("a reading without a time")?
                .to_owned(),
            celsius: value["temperature"]
                .as_f64()
                .context("a reading without a value")?,
        })
    }
}

/// Three machines over eight minutes; one runs hot.
pub(crate) fn readings() -> Vec<Reading> {
    [
        ("pump-03", "08:30", 41.2),
        ("mixer-07", "08:30", 68.9),
        ("oven-12", "08:31", 61.5),
        ("mixer-07", "08:32", 73.4),
        ("pump-03", "08:33", 41.8),
        ("mixer-07", "08:34", 81.6),
        ("oven-12", "08:35", 61.1),
        ("mixer-07", "08:36", 79.3),
        ("pump-03", "08:37", 41.5),
        ("mixer-07", "08:38", 76.8),
    ]
    .map(|(device, time, celsius)| Reading {
        device: device.to_owned(),
        time: time.to_owned(),
        celsius,
    })
    .into()
}

/// The prompt of the hottest machine's summary, in the form of models/demo/prompt-format.md.
pub(crate) fn prompt(readings: &[Reading], instruction: &str, language: &str) -> Result<String> {
    let hottest = readings
        .iter()
        .max_by(|a, b| a.celsius.total_cmp(&b.celsius))
        .context("no readings")?;
    let own: Vec<&Reading> = readings
        .iter()
        .filter(|reading| reading.device == hottest.device)
        .collect();
    let crossed = if hottest.celsius > LIMIT { "yes" } else { "no" };
    let mut lines = vec![
        instruction.to_owned(),
        "facts:".to_owned(),
        format!("language: {language}"),
        format!("device: \"{}\"", hottest.device),
        "quantity: \"temperature\"".to_owned(),
        format!("count: {}", own.len()),
        format!("max: {:.1} °C", hottest.celsius),
        format!("time: {}", hottest.time),
        format!("limit: {LIMIT:.1} °C"),
        format!("crossed: {crossed}"),
        "records:".to_owned(),
    ];
    for reading in own.iter().take(3) {
        lines.push(format!(
            "{{\"time\": \"{}\", \"device\": \"{}\", \"temperature\": {:.1}}}",
            reading.time, reading.device, reading.celsius
        ));
    }
    Ok(lines.join("\n"))
}
