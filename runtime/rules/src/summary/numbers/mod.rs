//! The check of a summary's numbers: unsupported ones are a model's commonest fault, and code can find them.
//!
//! Each number of a text is compared with those of facts, window and messages, in all of its interpretations
//! (`1.234` is a decimal in English and thousands in German), and rounded as a writer would. A wrong number that equals
//! another one passes; a right one is hardly ever reported.

mod dates;
mod interpretation;
mod known;
mod scan;

use super::{PromptMessage, WindowFacts};
use known::KnownNumbers;
use scan::{FoundNumber, scan};

/// The numbers of `text`, as written, that neither the facts and the window of `window_facts` nor one of `records`
/// support, nor `written`, the operator's texts (the template with its limits, the system message). Each is returned
/// once, in order.
pub fn unsupported_numbers(
    text: &str,
    window_facts: &WindowFacts<'_>,
    records: &[PromptMessage],
    written: &[&str],
) -> Vec<String> {
    let known = KnownNumbers::new(window_facts, records, written);
    let mut unsupported: Vec<String> = Vec::new();
    for found in scan(text) {
        if !is_counted_off(text, &found) && !known.supports(&found) && !unsupported.contains(&found.text) {
            unsupported.push(found.text);
        }
    }
    unsupported
}

/// Whether a number is a single digit of a list's item or an ordinal: `1.` at the start of a line, `(2)`, `3rd`,
/// `die 2. Störung`.
fn is_counted_off(text: &str, found: &FoundNumber) -> bool {
    if found.text.len() != 1 || !found.text.starts_with(|c: char| c.is_ascii_digit()) {
        return false;
    }
    let before = &text[..found.start];
    let after = &text[found.end..];
    let line_start = before
        .rsplit('\n')
        .next()
        .is_some_and(|line| line.trim_matches([' ', '\t', '*', '#', '-', '(']).is_empty());
    if line_start && after.starts_with(['.', ')', ':']) {
        return true;
    }
    if before.ends_with('(') && after.starts_with(')') {
        return true;
    }
    if ["st", "nd", "rd", "th"].iter().any(|suffix| {
        after
            .strip_prefix(suffix)
            .is_some_and(|rest| !rest.starts_with(|c: char| c.is_alphanumeric()))
    }) {
        return true;
    }
    // German: a point behind the digit, a word behind that, and an article before; else the point ends a sentence.
    const ARTICLES: [&str; 14] = [
        "der", "die", "das", "den", "dem", "des", "im", "am", "zum", "zur", "vom", "beim", "jeder", "jede",
    ];
    let article = before
        .split_whitespace()
        .next_back()
        .is_some_and(|word| ARTICLES.contains(&word.to_lowercase().as_str()));
    article
        && after
            .strip_prefix(". ")
            .is_some_and(|rest| rest.starts_with(char::is_alphabetic))
}

#[cfg(test)]
mod tests {
    use super::super::fixture;
    use super::*;
    use crate::Value;

    /// `expected` are the numbers that are reported, with `|` between.
    fn check(text: &str, expected: &str) {
        let mut fixture = fixture::window();
        let line = "Mar  2 08:07:11 gw-04 sshd[4711]: Failed password from 10.0.0.12 port 50122, load 0.350, 12345.678 kWh";
        let time = fixture::time("2026-03-02T07:07:11Z");
        fixture.records.push(PromptMessage::new(
            time,
            "logs/gw-04",
            line.as_bytes(),
            Vec::new(),
        ));
        let frozen = vec![("value".to_owned(), Value::Number(-18.25))];
        fixture
            .records
            .push(PromptMessage::new(time, "cold/2", b"{\"value\":-18.25}", frozen));
        let found = unsupported_numbers(
            text,
            &fixture.window_facts(),
            &fixture.records,
            &["The limit is 95,5 °C."],
        );
        assert_eq!(found.join("|"), expected, "{text}");
    }

    #[test]
    fn facts_and_their_roundings() {
        check("The highest was 81.6, the mean 74, the lowest 68.9.", "");
        check(
            "About 82 at most and 69 at least; it changed by 15.6 an hour, 0.26 a minute.",
            "",
        );
        check("The highest was 81.7, or 81.", "81.7|81");
        check("Es waren 3 Meldungen, 2 davon ok und 1 hot, 1 zu spät.", "");
        check("There were 5 messages and 17 faults, 17 in all.", "5|17");
        check("Over 8 hours (480 minutes).", "");
        check("Over 9 hours.", "9");
        check("That is above the limit of 95.5, not of 97.5.", "97.5");
    }

    #[test]
    fn marks_of_english_and_german() {
        check(
            "81,6 °C; 12.345,678 kWh; 12,345.678 kWh; 12\u{a0}346 kWh; 12'345.7",
            "",
        );
        check("12.346 kWh and 12,346", "");
        check("81,5 and 1.234,5 and 12.345.678", "81,5|1.234,5|12.345.678");
        check("-18.25, \u{2212}18,3 or 18 degrees below zero", "");
        check("+81.6 and -81.6", "-81.6");
        check("35 % load, 35% load, 36 %", "36");
        check("69-82", "");
        check("1.2345678e4 and 1e9", "1e9");
    }

    #[test]
    fn times_and_dates() {
        check("From 06:00 to 14:00, worst at 06:20 (06:20:00).", "");
        check("At 06:21 and 6:15, 05:15 UTC, 8:07 am, 8:07 pm.", "06:21|8:07");
        check("Um 06.20 Uhr, um 6 Uhr und um 14 Uhr; um 17 Uhr.", "17");
        check(
            "On 2026-03-02, 02.03.2026, 2.3.2026, 2.3., 3/2/2026, 2 March 2026, March 2, 2. März",
            "",
        );
        check(
            "On 2026-03-03, 03.03.2026 and March 5, 2025.",
            "2026-03-03|03.03.2026|5|2025",
        );
        check(
            "2026-03-02T06:20:00+01:00 and 2026-03-02T09:20:00+01:00",
            "09:20:00",
        );
    }

    #[test]
    fn names_addresses_and_codes() {
        check(
            "mixer-07 and MIXER-07 at gw-04, sshd[4711] from 10.0.0.12 port 50122",
            "",
        );
        check("mixer-08, P1, 10.0.0.13", "mixer-08|P1|10.0.0.13");
        check("Mixer 07 is mixer 7.", "");
        check("CO2 in 3 m3", "");
        check("3 Meldungen, 3x, 3-mal, 81.6°C, 81.6C", "");
    }

    #[test]
    fn counting_off_is_not_checked() {
        check("1. Mixer\n2. Pump\n 4) Door\n- 5: Gate\n**6.** Oven", "");
        check("(4) the 5th alarm, die 6. Störung, im 7. Fall", "");
        check("It was 6. Then 9.", "6|9");
        check("Step 14. 15th.", "14|15");
        check("", "");
        check("no numbers", "");
    }
}
