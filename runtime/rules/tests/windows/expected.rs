//! Expected windows, with facts computed by their definitions.

use std::collections::BTreeMap;

use phi_edge_rules::{CloseReason, FieldFacts, Time, Value, WindowMessage};

/// Start and end.
pub(crate) type Span = (Time, Time);

/// An expected closed window.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Expected {
    pub(crate) group: String,
    pub(crate) span: Span,
    pub(crate) reason: CloseReason,
    pub(crate) messages: u64,
    pub(crate) bytes: u64,
    pub(crate) late: u64,
    pub(crate) seqs: Vec<u64>,
    pub(crate) facts: Vec<FieldFacts>,
    pub(crate) forget: Vec<u64>,
}

/// A message, kept for ever.
#[derive(Debug, Clone)]
pub(crate) struct Row {
    pub(crate) o: WindowMessage,
    pub(crate) group: String,
    pub(crate) time: Time,
    /// The open windows it counts in, of kinds with periods.
    pub(crate) inside: Vec<Span>,
    pub(crate) open: bool,
}

/// Of rows in the order of their times.
pub(crate) fn facts(rows: &[Row], field: usize) -> FieldFacts {
    let values: Vec<(Time, &Value)> = rows
        .iter()
        .flat_map(|row| {
            row.o
                .values
                .iter()
                .map(move |(index, value)| (row.time, *index, value))
        })
        .filter(|(_, index, _)| *index == field)
        .map(|(time, _, value)| (time, value))
        .collect();
    let numbers: Vec<(Time, f64)> = values
        .iter()
        .filter_map(|(time, value)| match value {
            Value::Number(x) => Some((*time, *x)),
            Value::Text(_) => None,
        })
        .collect();
    let mut texts: BTreeMap<&str, u64> = BTreeMap::new();
    for (_, value) in &values {
        if let Value::Text(text) = value {
            *texts.entry(text).or_default() += 1;
        }
    }
    let mut texts: Vec<(String, u64)> = texts
        .into_iter()
        .map(|(text, count)| (text.to_owned(), count))
        .collect();
    texts.sort_by_key(|(text, count)| (u64::MAX - count, text.clone()));
    texts.truncate(10);
    let rate = numbers.first().zip(numbers.last()).and_then(|(first, last)| {
        let seconds = last.0.since(first.0).as_secs_f64();
        (seconds > 0.0).then(|| (last.1 - first.1) / seconds)
    });
    let count = f64::from(u32::try_from(numbers.len()).unwrap());
    FieldFacts {
        count: values.len() as u64,
        min: numbers.iter().map(|(_, x)| *x).reduce(f64::min),
        max: numbers.iter().map(|(_, x)| *x).reduce(f64::max),
        // The streams hold small whole numbers, of which any order of summing gives the same.
        mean: (count > 0.0).then(|| numbers.iter().map(|(_, x)| x).sum::<f64>() / count),
        first: values.first().map(|(_, value)| (*value).clone()),
        last: values.last().map(|(_, value)| (*value).clone()),
        rate,
        from: values.first().map(|(time, _)| *time),
        to: values.last().map(|(time, _)| *time),
        values: texts,
    }
}
