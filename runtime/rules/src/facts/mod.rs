//! The facts of a window: aggregates of its fields.

mod exact_sum;
mod text_pool;

use std::sync::Arc;

use super::Time;
use exact_sum::ExactSum;
pub(super) use text_pool::TextPool;

/// The value of a field of a message.
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
    /// The change of the numbers per second, from the earliest to the latest; `None` if they have the same timestamp.
    pub rate: Option<f64>,
    /// The timestamp of the earliest value.
    pub from: Option<Time>,
    /// The timestamp of the latest value.
    pub to: Option<Time>,
    /// The count of each text, the most frequent first, at most ten. Only the first 64 different texts of a window
    /// are counted (of a hopping window: of each of its slices).
    pub values: Vec<(String, u64)>,
}

/// The most different texts of a field that are counted in a window: the first ones that come. A field whose texts are
/// all different says nothing by their counts, and must not cost memory.
const MAX_DISTINCT_TEXTS: usize = 64;

/// The most texts in [`FieldFacts::values`].
const MAX_NAMED_TEXTS: usize = 10;

/// The accumulator of one field of an open window. It is small while it is empty: a window of many fields, of
/// which each message has one, must not cost memory for the others.
#[derive(Debug, Clone, Default)]
pub(super) struct Accumulator {
    numbers: Option<Box<Numbers>>,
    texts: Option<Box<Texts>>,
}

#[derive(Debug, Clone)]
struct Numbers {
    count: u64,
    sum: ExactSum,
    min: f64,
    max: f64,
    first: Timed<f64>,
    last: Timed<f64>,
}

#[derive(Debug, Clone)]
struct Texts {
    count: u64,
    first: Timed<Arc<str>>,
    last: Timed<Arc<str>>,
    /// In the order of the alphabet.
    counts: Vec<TextCount>,
}

/// The count of a text.
#[derive(Debug, Clone)]
struct TextCount {
    text: Arc<str>,
    times: u64,
    /// The number of the first message that had the text.
    since: u64,
}

/// A value and the timestamp and number of its message. Messages of one timestamp are ordered by their numbers.
#[derive(Debug, Clone)]
struct Timed<T> {
    time: Time,
    seq: u64,
    value: T,
}

impl<T> Timed<T> {
    fn place(&self) -> (Time, u64) {
        (self.time, self.seq)
    }

    fn at<U>(&self, value: U) -> Timed<U> {
        Timed {
            time: self.time,
            seq: self.seq,
            value,
        }
    }
}

impl Accumulator {
    /// Accumulates the value of a message. Numbers are finite.
    pub(super) fn add(&mut self, time: Time, seq: u64, value: &Value, pool: &mut TextPool) {
        match value {
            Value::Number(x) => {
                let at = Timed { time, seq, value: *x };
                match &mut self.numbers {
                    Some(numbers) => numbers.add(&at),
                    None => self.numbers = Some(Box::new(Numbers::of(at))),
                }
            }
            Value::Text(text) => {
                let at = Timed {
                    time,
                    seq,
                    value: pool.intern(text),
                };
                match &mut self.texts {
                    Some(texts) => texts.add(&at),
                    None => self.texts = Some(Box::new(Texts::of(&at))),
                }
            }
        }
    }

    /// Accumulates the accumulator of other messages.
    pub(super) fn merge(&mut self, other: &Self) {
        match (&mut self.numbers, &other.numbers) {
            (Some(mine), Some(other)) => mine.merge(other),
            (None, Some(other)) => self.numbers = Some(other.clone()),
            (_, None) => {}
        }
        match (&mut self.texts, &other.texts) {
            (Some(mine), Some(other)) => mine.merge(other),
            (None, Some(other)) => self.texts = Some(other.clone()),
            (_, None) => {}
        }
    }

    /// The facts.
    pub(super) fn finish(&self) -> FieldFacts {
        let (numbers, texts) = (self.numbers.as_deref(), self.texts.as_deref());
        let number = |at: &Timed<f64>| at.at(Value::Number(at.value));
        let text = |at: &Timed<Arc<str>>| at.at(Value::Text(at.value.to_string()));
        let first = [numbers.map(|n| number(&n.first)), texts.map(|t| text(&t.first))];
        let last = [numbers.map(|n| number(&n.last)), texts.map(|t| text(&t.last))];
        let first = first.into_iter().flatten().min_by_key(Timed::place);
        let last = last.into_iter().flatten().max_by_key(Timed::place);
        FieldFacts {
            count: numbers.map_or(0, |n| n.count) + texts.map_or(0, |t| t.count),
            min: numbers.map(|n| n.min),
            max: numbers.map(|n| n.max),
            mean: numbers.map(|n| n.sum.over(n.count).clamp(n.min, n.max)),
            rate: numbers.and_then(|n| rate(&n.first, &n.last)),
            from: first.as_ref().map(|first| first.time),
            to: last.as_ref().map(|last| last.time),
            first: first.map(|first| first.value),
            last: last.map(|last| last.value),
            values: texts.map(Texts::named).unwrap_or_default(),
        }
    }
}

impl Numbers {
    fn of(at: Timed<f64>) -> Self {
        let mut sum = ExactSum::default();
        sum.add(at.value);
        Self {
            count: 1,
            sum,
            min: at.value,
            max: at.value,
            first: at.clone(),
            last: at,
        }
    }

    fn add(&mut self, at: &Timed<f64>) {
        self.count += 1;
        self.sum.add(at.value);
        self.span(at.value, at.value, at, at);
    }

    fn merge(&mut self, other: &Self) {
        self.count += other.count;
        self.sum.merge(&other.sum);
        self.span(other.min, other.max, &other.first, &other.last);
    }

    fn span(&mut self, min: f64, max: f64, first: &Timed<f64>, last: &Timed<f64>) {
        self.min = self.min.min(min);
        self.max = self.max.max(max);
        keep_earlier(&mut self.first, first);
        keep_later(&mut self.last, last);
    }
}

impl Texts {
    fn of(at: &Timed<Arc<str>>) -> Self {
        let mut texts = Self {
            count: 1,
            first: at.clone(),
            last: at.clone(),
            counts: Vec::with_capacity(1),
        };
        texts.count_text(&TextCount::one(at));
        texts
    }

    fn add(&mut self, at: &Timed<Arc<str>>) {
        self.count += 1;
        keep_earlier(&mut self.first, at);
        keep_later(&mut self.last, at);
        let full = self.counts.len() >= MAX_DISTINCT_TEXTS;
        if !full || self.place_of(&at.value).is_ok() {
            self.count_text(&TextCount::one(at));
        }
    }

    fn merge(&mut self, other: &Self) {
        self.count += other.count;
        keep_earlier(&mut self.first, &other.first);
        keep_later(&mut self.last, &other.last);
        let since = |counts: &[TextCount]| counts.iter().map(|counted| counted.since).max();
        let last = since(&self.counts).filter(|_| self.counts.len() >= MAX_DISTINCT_TEXTS);
        for counted in &other.counts {
            // Of the texts that come later than the first 64 most need not be looked at.
            let late = last.is_some_and(|last| counted.since > last);
            if !late || self.place_of(&counted.text).is_ok() {
                self.count_text(counted);
            }
        }
        if self.counts.len() > MAX_DISTINCT_TEXTS {
            let mut since: Vec<u64> = self.counts.iter().map(|counted| counted.since).collect();
            since.sort_unstable();
            let last = since[MAX_DISTINCT_TEXTS - 1];
            self.counts.retain(|counted| counted.since <= last);
        }
    }

    fn place_of(&self, text: &str) -> Result<usize, usize> {
        self.counts.binary_search_by(|counted| (*counted.text).cmp(text))
    }

    fn count_text(&mut self, new: &TextCount) {
        match self.place_of(&new.text) {
            Ok(place) => {
                let counted = &mut self.counts[place];
                counted.times += new.times;
                counted.since = counted.since.min(new.since);
            }
            Err(place) => self.counts.insert(place, new.clone()),
        }
    }

    /// The most frequent texts. Those of the same count are in the order of the alphabet.
    fn named(&self) -> Vec<(String, u64)> {
        let mut counts: Vec<&TextCount> = self.counts.iter().collect();
        counts.sort_by_key(|counted| std::cmp::Reverse(counted.times));
        let named = counts.into_iter().take(MAX_NAMED_TEXTS);
        named
            .map(|counted| (counted.text.to_string(), counted.times))
            .collect()
    }
}

impl TextCount {
    fn one(at: &Timed<Arc<str>>) -> Self {
        Self {
            text: Arc::clone(&at.value),
            times: 1,
            since: at.seq,
        }
    }
}

fn keep_earlier<T: Clone>(kept: &mut Timed<T>, other: &Timed<T>) {
    if other.place() < kept.place() {
        *kept = other.clone();
    }
}

fn keep_later<T: Clone>(kept: &mut Timed<T>, other: &Timed<T>) {
    if other.place() > kept.place() {
        *kept = other.clone();
    }
}

fn rate(first: &Timed<f64>, last: &Timed<f64>) -> Option<f64> {
    let seconds = last.time.since(first.time).as_secs_f64();
    let change = last.value - first.value;
    let rate = if change.is_finite() {
        change / seconds
    } else {
        last.value / seconds - first.value / seconds
    };
    (seconds > 0.0 && rate.is_finite()).then_some(rate)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(values: &[Value]) -> FieldFacts {
        let (mut pool, mut facts) = (TextPool::default(), Accumulator::default());
        for (n, value) in (0..).zip(values) {
            facts.add(Time(n * 1000), n.unsigned_abs(), value, &mut pool);
        }
        facts.finish()
    }

    #[test]
    fn the_greatest_numbers_have_facts() {
        let facts = facts(&[1e308, 1e308, -1e308].map(Value::Number));
        assert!((facts.mean.unwrap() / 3.333_333_333_333_333e307 - 1.0).abs() < 1e-15);
        assert_eq!((facts.min, facts.max), (Some(-1e308), Some(1e308)));
        assert_eq!(facts.rate, Some(-1e308));
    }

    #[test]
    fn only_the_first_64_texts_are_counted_in_parts_as_in_a_whole() {
        let text = |n: u64| Value::Text(format!("t{}", n % 90));
        let mut pool = TextPool::default();
        let mut parts = [Accumulator::default(), Accumulator::default()];
        let mut whole = Accumulator::default();
        for seq in 0..90 {
            parts[usize::from(seq % 3 == 0)].add(Time(0), seq, &text(seq), &mut pool);
            whole.add(Time(0), seq, &text(seq), &mut pool);
        }
        let [mut merged, other] = parts;
        merged.merge(&other);
        let texts = |facts: &Accumulator| {
            let texts = facts.texts.as_ref().unwrap();
            let named = texts.counts.iter().map(|counted| counted.text.to_string());
            (texts.count, named.collect::<Vec<_>>())
        };
        assert_eq!(texts(&merged), texts(&whole));
        assert_eq!(texts(&merged).1.len(), MAX_DISTINCT_TEXTS);
    }
}
