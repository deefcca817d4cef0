//! What is computed of a window's fields.

use std::collections::BTreeMap;

use super::Time;

/// What a field of a message holds.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// A finite number.
    Number(f64),
    /// Anything else, as text.
    Text(String),
}

/// The facts of one field over a window.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct FieldFacts {
    /// Messages that had the field.
    pub count: u64,
    /// The least number.
    pub min: Option<f64>,
    /// The greatest number.
    pub max: Option<f64>,
    /// The mean of the numbers.
    pub mean: Option<f64>,
    /// The earliest value.
    pub first: Option<Value>,
    /// The latest value.
    pub last: Option<Value>,
    /// Change of the numbers in a second, from the earliest to the latest; none if they are not apart in time.
    pub rate: Option<f64>,
    /// When the earliest value was.
    pub from: Option<Time>,
    /// When the latest value was.
    pub to: Option<Time>,
    /// How often each text was there, the most frequent first, at most ten. Only the first 64 different texts of a window
    /// are counted.
    pub values: Vec<(String, u64)>,
}

/// The most different texts of a field that are counted in a window: the first ones that come. A field whose texts are
/// all different says nothing by their counts, and must not cost memory.
const DISTINCT_TEXTS: usize = 64;

/// The most texts that are named.
const NAMED_TEXTS: usize = 10;

/// The facts of one field of an open window, without its messages.
#[derive(Debug, Clone, Default)]
pub(super) struct Accumulator {
    count: u64,
    numbers: u64,
    sum: Sum,
    min: f64,
    max: f64,
    first: Option<At<Value>>,
    last: Option<At<Value>>,
    first_number: Option<At<f64>>,
    last_number: Option<At<f64>>,
    texts: BTreeMap<String, u64>,
}

/// Something a message held. Messages of the same moment are ordered by their numbers.
#[derive(Debug, Clone)]
struct At<T> {
    time: Time,
    seq: u64,
    value: T,
}

impl<T> At<T> {
    fn place(&self) -> (Time, u64) {
        (self.time, self.seq)
    }
}

/// A sum that keeps what rounding takes away (Neumaier 1974): a mean over days must not drift.
#[derive(Debug, Clone, Copy, Default)]
struct Sum {
    total: f64,
    lost: f64,
}

impl Sum {
    fn add(&mut self, x: f64) {
        let total = self.total + x;
        self.lost += if self.total.abs() >= x.abs() {
            (self.total - total) + x
        } else {
            (x - total) + self.total
        };
        self.total = total;
    }

    fn value(self) -> f64 {
        let value = self.total + self.lost;
        // Beyond the greatest double, what was lost is not a number.
        if value.is_nan() { self.total } else { value }
    }
}

impl Accumulator {
    /// Counts the value of a message. Numbers are finite.
    pub(super) fn add(&mut self, time: Time, seq: u64, value: &Value) {
        self.count += 1;
        let place = (time, seq);
        if self.first.as_ref().is_none_or(|first| place < first.place()) {
            self.first = Some(At {
                time,
                seq,
                value: value.clone(),
            });
        }
        match &mut self.last {
            Some(last) if place <= last.place() => {}
            Some(last) => {
                last.time = time;
                last.seq = seq;
                last.value.clone_from(value);
            }
            None => {
                self.last = Some(At {
                    time,
                    seq,
                    value: value.clone(),
                })
            }
        }
        match value {
            Value::Number(x) => self.add_number(place, *x),
            Value::Text(text) => self.add_text(text, 1),
        }
    }

    fn add_number(&mut self, place: (Time, u64), x: f64) {
        self.min = if self.numbers == 0 { x } else { self.min.min(x) };
        self.max = if self.numbers == 0 { x } else { self.max.max(x) };
        self.numbers += 1;
        self.sum.add(x);
        let at = At {
            time: place.0,
            seq: place.1,
            value: x,
        };
        if self
            .first_number
            .as_ref()
            .is_none_or(|first| place < first.place())
        {
            self.first_number = Some(at.clone());
        }
        if self.last_number.as_ref().is_none_or(|last| place > last.place()) {
            self.last_number = Some(at);
        }
    }

    fn add_text(&mut self, text: &str, times: u64) {
        if let Some(count) = self.texts.get_mut(text) {
            *count += times;
        } else if self.texts.len() < DISTINCT_TEXTS {
            self.texts.insert(text.to_owned(), times);
        }
    }

    /// Counts what another window counted, of other messages.
    pub(super) fn merge(&mut self, other: Self) {
        if other.numbers > 0 {
            self.min = if self.numbers == 0 {
                other.min
            } else {
                self.min.min(other.min)
            };
            self.max = if self.numbers == 0 {
                other.max
            } else {
                self.max.max(other.max)
            };
        }
        self.count += other.count;
        self.numbers += other.numbers;
        self.sum.add(other.sum.total);
        self.sum.lost += other.sum.lost;
        self.first = earlier(self.first.take(), other.first);
        self.last = later(self.last.take(), other.last);
        self.first_number = earlier(self.first_number.take(), other.first_number);
        self.last_number = later(self.last_number.take(), other.last_number);
        for (text, count) in other.texts {
            self.add_text(&text, count);
        }
    }

    /// The facts.
    pub(super) fn finish(self) -> FieldFacts {
        let numbers = self.numbers > 0;
        // Messages of one window are counted far below 2^53, where doubles count exactly.
        #[allow(clippy::cast_precision_loss)]
        let mean = (self.sum.value() / self.numbers as f64).clamp(self.min, self.max.max(self.min));
        let mut values: Vec<(String, u64)> = self.texts.into_iter().collect();
        // The sort is stable: texts of the same count stay in the order of the alphabet.
        values.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        values.truncate(NAMED_TEXTS);
        FieldFacts {
            count: self.count,
            min: numbers.then_some(self.min),
            max: numbers.then_some(self.max),
            mean: numbers.then_some(mean),
            rate: rate(self.first_number.as_ref(), self.last_number.as_ref()),
            from: self.first.as_ref().map(|first| first.time),
            to: self.last.as_ref().map(|last| last.time),
            first: self.first.map(|first| first.value),
            last: self.last.map(|last| last.value),
            values,
        }
    }
}

fn earlier<T>(a: Option<At<T>>, b: Option<At<T>>) -> Option<At<T>> {
    match (a, b) {
        (Some(a), Some(b)) => Some(if b.place() < a.place() { b } else { a }),
        (a, b) => a.or(b),
    }
}

fn later<T>(a: Option<At<T>>, b: Option<At<T>>) -> Option<At<T>> {
    match (a, b) {
        (Some(a), Some(b)) => Some(if b.place() > a.place() { b } else { a }),
        (a, b) => a.or(b),
    }
}

fn rate(first: Option<&At<f64>>, last: Option<&At<f64>>) -> Option<f64> {
    let (first, last) = (first?, last?);
    let seconds = last.time.since(first.time).as_secs_f64();
    let rate = (last.value - first.value) / seconds;
    (seconds > 0.0 && rate.is_finite()).then_some(rate)
}
