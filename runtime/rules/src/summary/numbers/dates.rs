//! The interpretations of times of day and dates in English and German.

use super::interpretation::Interpretation;

/// Bytes beside a number in which a month's name is searched.
const WORD_SEARCH_BYTES: usize = 24;

/// A time of day: `6:15`, `06:20:00`, `06:20:00.5`, with `am` or `pm` after it.
pub(super) fn clock_of(run: &str, after: &str) -> Option<Interpretation> {
    let whole = run.split('.').next()?;
    let steps: Vec<u32> = whole
        .split(':')
        .map(|step| step.parse().ok())
        .collect::<Option<_>>()?;
    let (hour, minute, second) = match steps[..] {
        [hour, minute] => (hour, minute, 0),
        [hour, minute, second] => (hour, minute, second),
        _ => return None,
    };
    let hour = half_day(hour, after.trim_start());
    clock(hour, minute, second, steps.len() == 3)
}

fn clock(hour: u32, minute: u32, second: u32, exact: bool) -> Option<Interpretation> {
    let sound = minute < 60 && second < 61 && (hour < 24 || (hour == 24 && minute == 0));
    sound.then(|| Interpretation::Clock {
        seconds: hour % 24 * 3600 + minute * 60 + second,
        exact,
    })
}

/// The hour of 24, by `am` or `pm` if one of them follows.
fn half_day(hour: u32, after: &str) -> u32 {
    let follows = |word: &str| starts_with_word(after, word);
    if (follows("pm") || follows("p.m") || follows("PM")) && hour < 12 {
        hour + 12
    } else if (follows("am") || follows("a.m") || follows("AM")) && hour == 12 {
        0
    } else {
        hour
    }
}

/// A time of day with its word: `14 Uhr`, `06.20 Uhr`, `2 pm`, `6 o'clock`.
pub(super) fn hour(run: &str, after: &str) -> Option<Interpretation> {
    let names = ["Uhr", "o'clock", "o’clock", "am", "pm", "AM", "PM", "a.m", "p.m"];
    if !names.iter().any(|name| starts_with_word(after, name)) {
        return None;
    }
    let (hour, minute) = run.split_once('.').unwrap_or((run, "0"));
    clock(
        half_day(hour.parse().ok()?, after),
        minute.parse().ok()?,
        0,
        false,
    )
}

/// The interpretations of a date: `2026-03-02`, `3/2/2026`, `2/3/2026`, `3/2`; `None` if it is none.
pub(super) fn dates(run: &str) -> Option<Vec<Interpretation>> {
    let steps: Vec<u32> = run
        .split(['-', '/'])
        .map(|step| step.parse().ok())
        .collect::<Option<_>>()?;
    let interpretations: Vec<Interpretation> = match steps[..] {
        [year, month, day] if year > 31 => date(Some(year), month, day).into_iter().collect(),
        [a, b, year] if year > 31 => [date(Some(year), a, b), date(Some(year), b, a)]
            .into_iter()
            .flatten()
            .collect(),
        [a, b] if run.contains('/') => [date(None, a, b), date(None, b, a)]
            .into_iter()
            .flatten()
            .collect(),
        _ => Vec::new(),
    };
    (!interpretations.is_empty()).then_some(interpretations)
}

fn date(year: Option<u32>, month: u32, day: u32) -> Option<Interpretation> {
    ((1..=12).contains(&month) && (1..=31).contains(&day)).then_some(Interpretation::Date {
        year,
        month,
        day,
    })
}

/// A date with points: `02.03.2026`, and `2.3.` with its second point.
pub(super) fn dotted_date(run: &str, after: &str) -> Option<Interpretation> {
    let steps: Vec<u32> = run
        .split('.')
        .map(|step| step.parse().ok())
        .collect::<Option<_>>()?;
    match steps[..] {
        [day, month, year] => date(Some(if year < 100 { 2000 + year } else { year }), month, day),
        [day, month] if after.starts_with('.') => date(None, month, day),
        _ => None,
    }
}

/// A day with its month's name: `2 March`, `March 2`, `2. März`.
pub(super) fn day_of_month(run: &str, before: &str, after: &str) -> Option<Interpretation> {
    const MONTHS: [&[&str]; 12] = [
        &["january", "januar", "jan"],
        &["february", "februar", "feb"],
        &["march", "märz", "mar"],
        &["april", "apr"],
        &["may", "mai"],
        &["june", "juni", "jun"],
        &["july", "juli", "jul"],
        &["august", "aug"],
        &["september", "sep"],
        &["october", "oktober", "oct", "okt"],
        &["november", "nov"],
        &["december", "dezember", "dec", "dez"],
    ];
    let day: u32 = run.parse().ok()?;
    let month = |word: &str| {
        let word = word.trim_matches(|c: char| !c.is_alphabetic()).to_lowercase();
        (1..)
            .zip(MONTHS)
            .find(|(_, names)| names.contains(&word.as_str()))
            .map(|(month, _)| month)
    };
    let after = &after[..after.floor_char_boundary(WORD_SEARCH_BYTES)];
    let before = &before[before.floor_char_boundary(before.len().saturating_sub(WORD_SEARCH_BYTES))..];
    let next = after
        .trim_start_matches(['.', ' '])
        .split_whitespace()
        .find(|word| *word != "of");
    let near = next
        .and_then(month)
        .or_else(|| before.split_whitespace().next_back().and_then(month))?;
    date(None, near, day)
}

pub(super) fn starts_with_word(text: &str, word: &str) -> bool {
    text.strip_prefix(word)
        .is_some_and(|rest| !rest.starts_with(|c: char| c.is_alphanumeric()))
}
