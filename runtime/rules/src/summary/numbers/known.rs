//! The known numbers: those of facts, window and messages.

use std::collections::HashSet;

use jiff::ZonedDateTime;
use jiff::tz::TimeZone;

use super::interpretation::Interpretation;
use super::scan::{FoundNumber, scan};
use crate::summary::local_time::local_time;
use crate::summary::{PromptMessage, WindowFacts};
use crate::{FieldFacts, Time, Value};

/// Substances and units, which look like names with numbers.
const SUBSTANCES_AND_UNITS: [&str; 10] = ["co2", "o2", "n2", "h2", "h2o", "nh3", "ch4", "m2", "m3", "pm10"];

/// The numbers, times, dates and texts that support those of a summary.
#[derive(Debug, Default)]
pub(super) struct KnownNumbers {
    /// Ascending.
    numbers: Vec<f64>,
    /// Their magnitudes, ascending: "18 below zero" has no sign.
    magnitudes: Vec<f64>,
    /// Numbers from texts; the number of a name is supported by them only, and not by a count.
    written: Vec<f64>,
    /// Times of day in seconds.
    clocks: HashSet<u32>,
    dates: HashSet<(u32, u32, u32)>,
    /// All texts in lower case, a line each.
    text: String,
}

impl KnownNumbers {
    pub(super) fn new(window_facts: &WindowFacts<'_>, records: &[PromptMessage], written: &[&str]) -> Self {
        let mut known = Self::default();
        for text in [window_facts.rule, window_facts.group].iter().chain(written) {
            known.text(text);
        }
        known.window(window_facts);
        for (name, facts) in window_facts.stats {
            known.text(name);
            known.facts(facts, window_facts.zone);
        }
        let mut topic = "";
        for record in records {
            known.moment(record.time(), window_facts.zone);
            if record.topic() != topic {
                topic = record.topic();
                known.text(topic);
            }
            known.text(record.payload());
            for (_, value) in record.fields() {
                known.value(value);
            }
        }
        known.magnitudes = known.numbers.iter().map(|number| number.abs()).collect();
        for numbers in [&mut known.numbers, &mut known.magnitudes, &mut known.written] {
            numbers.sort_unstable_by(f64::total_cmp);
            numbers.dedup();
        }
        known
    }

    /// Whether one of the interpretations of `found` is known, or its text if that is a name.
    pub(super) fn supports(&self, found: &FoundNumber) -> bool {
        let read = |interpretation: &Interpretation| match *interpretation {
            Interpretation::Number { value, .. } if found.name => rounds_to(&self.written, value, 0, 1.0),
            interpretation => self.has(interpretation),
        };
        let known_word = found.name && SUBSTANCES_AND_UNITS.contains(&found.text.to_lowercase().as_str());
        found.interpretations.iter().any(read) || known_word || (found.literal && self.says(&found.text))
    }

    fn has(&self, interpretation: Interpretation) -> bool {
        match interpretation {
            Interpretation::Number {
                value,
                decimals,
                signed,
                percent,
            } => {
                let numbers = if signed { &self.numbers } else { &self.magnitudes };
                // The year of a date may stand alone.
                let dated = decimals == 0
                    && !signed
                    && self
                        .dates
                        .iter()
                        .any(|&(year, _, _)| same(f64::from(year), value));
                dated
                    || rounds_to(numbers, value, decimals, 1.0)
                    || (percent && rounds_to(numbers, value, decimals, 100.0))
            }
            Interpretation::Clock { seconds, exact } => {
                self.clocks.contains(&seconds)
                    || (!exact && (seconds..seconds + 60).any(|second| self.clocks.contains(&second)))
            }
            Interpretation::Date { year, month, day } => self
                .dates
                .iter()
                .any(|known| (known.1, known.2) == (month, day) && year.is_none_or(|year| year == known.0)),
        }
    }

    /// Whether the texts contain `text` with no letter or digit before and after it.
    fn says(&self, text: &str) -> bool {
        let text = text.to_lowercase();
        self.text.match_indices(&text).any(|(start, _)| {
            let before = self.text[..start].chars().next_back();
            let after = self.text[start + text.len()..].chars().next();
            !before.is_some_and(char::is_alphanumeric) && !after.is_some_and(char::is_alphanumeric)
        })
    }

    #[allow(clippy::cast_precision_loss, reason = "counts far below 2^53")]
    fn window(&mut self, window_facts: &WindowFacts<'_>) {
        let window = window_facts.window;
        for count in [window.messages, window.late, window.left_out, window.dropped] {
            self.numbers.push(count as f64);
        }
        let seconds = window.end.since(window.start).as_secs_f64();
        let units = [1.0, 60.0, 3600.0, 86400.0].map(|unit| seconds / unit);
        self.numbers
            .extend(units.into_iter().filter(|amount| *amount >= 1.0));
        self.moment(window.start, window_facts.zone);
        self.moment(window.end, window_facts.zone);
    }

    #[allow(clippy::cast_precision_loss, reason = "counts far below 2^53")]
    fn facts(&mut self, facts: &FieldFacts, zone: &TimeZone) {
        self.numbers.push(facts.count as f64);
        self.numbers
            .extend([facts.min, facts.max, facts.mean].into_iter().flatten());
        if let Some(rate) = facts.rate {
            self.numbers.extend([rate, rate * 60.0, rate * 3600.0]);
        }
        for value in [&facts.first, &facts.last].into_iter().flatten() {
            self.value(value);
        }
        for time in [facts.from, facts.to].into_iter().flatten() {
            self.moment(time, zone);
        }
        for (text, count) in &facts.values {
            self.text(text);
            self.numbers.push(*count as f64);
        }
    }

    fn value(&mut self, value: &Value) {
        match value {
            Value::Number(number) => self.numbers.push(*number),
            Value::Text(text) => self.text(text),
        }
    }

    /// Adds a moment in the rule's zone, and in UTC for machines that know no zones.
    fn moment(&mut self, time: Time, zone: &TimeZone) {
        for zoned in [local_time(time, zone), local_time(time, &TimeZone::UTC)]
            .into_iter()
            .flatten()
        {
            self.clocks.insert(seconds_of(&zoned));
            let number = |n: i8| u32::try_from(n).unwrap_or(0);
            let year = u32::try_from(zoned.year()).unwrap_or(0);
            self.dates
                .insert((year, number(zoned.month()), number(zoned.day())));
        }
    }

    fn text(&mut self, text: &str) {
        self.text.push_str(&text.to_lowercase());
        self.text.push('\n');
        for found in scan(text) {
            for interpretation in found.interpretations {
                match interpretation {
                    Interpretation::Number { value, .. } => {
                        self.numbers.push(value);
                        self.written.push(value);
                    }
                    Interpretation::Clock { seconds, .. } => {
                        self.clocks.insert(seconds);
                    }
                    Interpretation::Date { year, month, day } => {
                        self.dates.insert((year.unwrap_or(0), month, day));
                    }
                }
            }
        }
    }
}

fn seconds_of(zoned: &ZonedDateTime) -> u32 {
    let number = |n: i8| u32::try_from(n).unwrap_or(0);
    number(zoned.hour()) * 3600 + number(zoned.minute()) * 60 + number(zoned.second())
}

/// Whether one of `numbers`, times `factor`, is `value` when it is rounded to `decimals`.
fn rounds_to(numbers: &[f64], value: f64, decimals: usize, factor: f64) -> bool {
    let half = 0.5 * 10_f64.powi(-i32::try_from(decimals).unwrap_or(i32::MAX));
    // A little more, as 0.5 has no exact neighbours among the f64 of decimals.
    let slack = half + value.abs().max(1.0) * 1e-9;
    let first = numbers.partition_point(|number| number * factor < value - slack);
    numbers
        .get(first)
        .is_some_and(|number| number * factor <= value + slack)
}

fn same(a: f64, b: f64) -> bool {
    (a - b).abs() < 0.5
}
