//! The numbers in a text, with their interpretations.

use super::dates::{clock_of, dates, day_of_month, dotted_date, hour, starts_with_word};
use super::interpretation::Interpretation;

/// A number in a text.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct FoundNumber {
    /// As written; a name with its letters.
    pub(super) text: String,
    /// Its start in bytes.
    pub(super) start: usize,
    /// Its end in bytes.
    pub(super) end: usize,
    /// Its interpretations; empty for a mere name.
    pub(super) interpretations: Vec<Interpretation>,
    /// Whether it is a name with digits at its end.
    pub(super) name: bool,
    /// Whether the same text in a message supports it: a name, an address, a version.
    pub(super) literal: bool,
}

/// The most bytes of a name before its digits.
const MAX_NAME_BYTES: usize = 64;

/// The thousands separators beside point and comma: no-break spaces, thin space, apostrophes.
const THOUSANDS_SEPARATORS: [char; 5] = ['\u{a0}', '\u{202f}', '\u{2009}', '\'', '’'];

/// The numbers of a text, in order.
pub(super) fn scan(text: &str) -> Vec<FoundNumber> {
    let mut found = Vec::new();
    let (mut at, mut stamp_end) = (0, None);
    while let Some(start) = text[at..]
        .find(|c: char| c.is_ascii_digit())
        .map(|offset| at + offset)
    {
        let end = end_of(text, start);
        // The offset from UTC of a time in RFC 3339 is none of the text's numbers.
        if stamp_end.is_some_and(|end| end + 1 == start) && text[at..start].starts_with(['+', '-']) {
            at = end;
            continue;
        }
        let one = take(text, start, end);
        at = one.end;
        stamp_end = text[..start].ends_with('T').then_some(one.end);
        found.push(one);
    }
    found
}

/// The end of the run of digits and marks that begins at `start`: a mark belongs to it if a digit follows.
fn end_of(text: &str, start: usize) -> usize {
    let mut end = start;
    let mut before = '0';
    for (offset, c) in text[start..].char_indices() {
        let mark = matches!(c, '.' | ',' | ':' | '/' | '-') || THOUSANDS_SEPARATORS.contains(&c);
        if !(c.is_ascii_digit() || mark && before.is_ascii_digit()) {
            break;
        }
        let next = text[start + offset + c.len_utf8()..].chars().next();
        if mark && !next.is_some_and(|next| next.is_ascii_digit()) {
            break;
        }
        before = c;
        end = start + offset + c.len_utf8();
    }
    end
}

fn take(text: &str, start: usize, end: usize) -> FoundNumber {
    let name_start = name_start(text, start);
    if name_start < start {
        // A name holds no marks but those between its own parts.
        let end = start
            + text[start..]
                .find(|c: char| !c.is_alphanumeric())
                .unwrap_or(text.len() - start);
        return FoundNumber {
            text: text[name_start..end].to_owned(),
            start: name_start,
            end,
            interpretations: number(&text[start..end]).into_iter().collect(),
            name: true,
            literal: true,
        };
    }
    let run = &text[start..end];
    let whole = |end: usize, interpretations: Vec<Interpretation>| FoundNumber {
        text: text[start..end].to_owned(),
        start,
        end,
        interpretations,
        name: false,
        literal: true,
    };
    if run.contains(':') {
        // A date and a time in one are taken one after the other: `2026-03-02T06:20` has a letter between them.
        let clock_end = run.find(['-', '/', ',']).map_or(end, |offset| start + offset);
        let clock = &text[start..clock_end];
        return whole(
            clock_end,
            clock_of(clock, &text[clock_end..]).into_iter().collect(),
        );
    }
    if run.contains(['-', '/']) {
        if let Some(dates) = dates(run) {
            return whole(end, dates);
        }
        let part = start + run.find(['-', '/']).unwrap_or(run.len());
        return plain(text, start, part);
    }
    plain(text, start, end)
}

/// A number without `:`, `-` and `/` within.
fn plain(text: &str, start: usize, end: usize) -> FoundNumber {
    let mut run = &text[start..end];
    let mut end = end;
    let after = &text[end..];
    if let Some(exponent) = exponent(after) {
        end += exponent;
        run = &text[start..end];
    }
    let after = text[end..].trim_start_matches([' ', '\u{a0}', '\u{202f}']);
    let percent =
        after.starts_with('%') || starts_with_word(after, "percent") || starts_with_word(after, "Prozent");
    let before = text[..start].chars().next_back();
    let sign = before.filter(|c| matches!(c, '-' | '+' | '\u{2212}' | '–'));
    let signed = sign.filter(|sign| {
        let outer = text[..start - sign.len_utf8()].chars().next_back();
        outer.is_none_or(|c| c.is_whitespace() || matches!(c, '(' | '[' | ':' | '=' | '"' | ','))
    });
    let (shown, factor) = match signed {
        Some('+') => (start - 1, 1.0),
        Some(sign) => (start - sign.len_utf8(), -1.0),
        None => (start, 1.0),
    };
    let mut interpretations: Vec<Interpretation> = numbers(run)
        .into_iter()
        .map(|(value, decimals)| Interpretation::Number {
            value: value * factor,
            decimals,
            signed: signed.is_some(),
            percent,
        })
        .collect();
    if signed.is_none() {
        interpretations.extend(hour(run, after));
        interpretations.extend(dotted_date(run, &text[end..]));
        interpretations.extend(day_of_month(run, &text[..start], after));
    }
    let marks = run.matches(|c: char| !c.is_ascii_digit()).count();
    FoundNumber {
        text: text[shown..end].to_owned(),
        start: shown,
        end,
        interpretations,
        name: false,
        literal: marks > 1,
    }
}

/// The start of the name that ends with the digits at `start`, as in `mixer-07`, `P1` or `gw_04`; `start` if there is none.
fn name_start(text: &str, start: usize) -> usize {
    let before = &text[text.floor_char_boundary(start.saturating_sub(MAX_NAME_BYTES))..start];
    let letters = before.trim_end_matches(|c: char| c.is_alphanumeric() || matches!(c, '-' | '_'));
    let name = &before[letters.len()..];
    // What begins with a digit or a sign is none, such as `2026-03-02T` before `06:00`.
    let joined = name
        .trim_end_matches('-')
        .ends_with(|c: char| c.is_alphabetic() || c == '_');
    if joined && name.starts_with(char::is_alphabetic) {
        start - name.len()
    } else {
        start
    }
}

/// The length of an exponent at the start of `after`.
fn exponent(after: &str) -> Option<usize> {
    let digits = after.strip_prefix(['e', 'E'])?;
    let digits = digits.strip_prefix(['-', '+']).unwrap_or(digits);
    let count = digits.len() - digits.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let ends = digits[count..]
        .chars()
        .next()
        .is_none_or(|c| !c.is_alphanumeric());
    (count > 0 && ends).then(|| after.len() - digits.len() + count)
}

fn number(run: &str) -> Option<Interpretation> {
    let digits = run.trim_end_matches(|c: char| !c.is_ascii_digit());
    let value = digits.parse().ok()?;
    Some(Interpretation::Number {
        value,
        decimals: 0,
        signed: false,
        percent: false,
    })
}

/// The values that a run of digits and marks may have, each with its number of digits after the point.
pub(super) fn numbers(run: &str) -> Vec<(f64, usize)> {
    let mut values = Vec::new();
    let mut add = |digits: &str, decimals: usize| {
        if let Ok(value) = digits.parse::<f64>()
            && value.is_finite()
            && !values.contains(&(value, decimals))
        {
            values.push((value, decimals));
        }
    };
    if let Some((mantissa, exponent)) = run.split_once(['e', 'E']) {
        let mantissa = mantissa.replace(',', ".");
        let digits = mantissa.split_once('.').map_or(0, |(_, digits)| digits.len());
        let exponent: i32 = exponent.parse().unwrap_or(0);
        let decimals = i32::try_from(digits).unwrap_or(0).saturating_sub(exponent);
        add(
            &format!("{mantissa}e{exponent}"),
            usize::try_from(decimals).unwrap_or(0),
        );
        return values;
    }
    for (decimal, thousands) in [('.', ','), (',', '.')] {
        let (whole, fraction) = run
            .rsplit_once(decimal)
            .map_or((run, None), |(whole, fraction)| (whole, Some(fraction)));
        if fraction.is_some_and(|fraction| !fraction.bytes().all(|b| b.is_ascii_digit())) {
            continue;
        }
        let grouping = |c: char| c == thousands || THOUSANDS_SEPARATORS.contains(&c);
        let Some(digits) = ungroup(whole, grouping) else {
            continue;
        };
        let fraction = fraction.unwrap_or("");
        add(&format!("{digits}.{fraction}0"), fraction.len());
    }
    values
}

/// The digits of a whole number, whose groups must be of three where there are groups.
fn ungroup(whole: &str, grouping: impl Fn(char) -> bool) -> Option<String> {
    let mut groups = whole.split(grouping);
    let first = groups.next()?;
    let mut digits = first.to_owned();
    let mut grouped = false;
    for group in groups {
        if group.len() != 3 {
            return None;
        }
        grouped = true;
        digits.push_str(group);
    }
    let sound = digits.bytes().all(|b| b.is_ascii_digit()) && !digits.is_empty();
    (sound && (!grouped || (first.len() <= 3 && !first.starts_with('0')))).then_some(digits)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn values() {
        let check = |run: &str, expected: &[(f64, usize)]| assert_eq!(numbers(run), expected, "{run}");
        check("21", &[(21.0, 0)]);
        check("21.50", &[(21.5, 2)]);
        check("21,5", &[(21.5, 1)]);
        check("1.234", &[(1.234, 3), (1234.0, 0)]);
        check("0.350", &[(0.35, 3)]);
        check("1,234,567.8", &[(1_234_567.8, 1)]);
        check("1.234.567", &[(1_234_567.0, 0)]);
        check("12\u{202f}345", &[(12345.0, 0)]);
        check("2.5e3", &[(2500.0, 0)]);
        check("10.0.0.12", &[]);
    }

    proptest! {
        /// Whatever it is given, it finds every digit once and in order.
        #[test]
        fn every_digit_is_in_one_number(text in "([0-9]|[.,:/'+\\-eTm %\u{a0}]|\\PC|06:15|2026-03-02T|\n){0,40}") {
            let mut end = 0;
            let mut digits = 0;
            for found in scan(&text) {
                prop_assert!(found.start >= end || found.name, "{found:?}");
                prop_assert_eq!(&text[found.start..found.end], found.text.as_str());
                end = found.end;
                digits += 1;
            }
            prop_assert_eq!(digits > 0, text.contains(|c: char| c.is_ascii_digit()));
        }
    }
}
