//! The parsers of texts within a rule.

use super::{Rate, Selector, TimeOfDay, TimeSource};
use crate::TimeSpan;

/// Parses `arrival` or `field:/json/pointer`; the lateness is another key.
pub(super) fn time_source(text: &str) -> Option<TimeSource> {
    if text == "arrival" {
        return Some(TimeSource::Arrival);
    }
    field(text).map(|pointer| TimeSource::Field {
        pointer,
        lateness: TimeSpan::from_millis(0),
    })
}

/// Parses `topic:N` or `field:/json/pointer`.
pub(super) fn selector(text: &str) -> Option<Selector> {
    if let Some(level) = text.strip_prefix("topic:") {
        return topic_level(level).map(Selector::Topic);
    }
    field(text).map(Selector::Field)
}

/// Parses the level of a topic, counted from 0, up to the number of levels that a topic can have.
pub(super) fn topic_level(text: &str) -> Option<usize> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let level: u16 = text.parse().ok().filter(|_| digits)?;
    Some(usize::from(level))
}

fn field(text: &str) -> Option<String> {
    let pointer = text.strip_prefix("field:")?;
    is_pointer(pointer).then(|| pointer.to_owned())
}

/// Whether the text is a JSON pointer (RFC 6901): empty, or begun by a slash, with `~` only in `~0` and `~1`.
pub(crate) fn is_pointer(text: &str) -> bool {
    let escapes = text
        .split('~')
        .skip(1)
        .all(|rest| rest.starts_with('0') || rest.starts_with('1'));
    (text.is_empty() || text.starts_with('/')) && escapes
}

/// The maximum length of a field's name, in bytes.
const MAX_FIELD_NAME_LEN: usize = 64;
/// The keywords of the template language; a field with such a name could not be used in an expression.
const TEMPLATE_KEYWORDS: [&str; 13] = [
    "and", "or", "not", "in", "is", "if", "else", "true", "false", "none", "True", "False", "None",
];

/// Whether the text can be the name of a field in templates and expressions.
pub(crate) fn is_field_name(text: &str) -> bool {
    let begins = text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    let goes_on = text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    begins && goes_on && text.len() <= MAX_FIELD_NAME_LEN && !TEMPLATE_KEYWORDS.contains(&text)
}

/// `HH:MM` or `HH:MM:SS`.
pub(super) fn time_of_day(text: &str) -> Option<TimeOfDay> {
    let mut parts = text.split(':');
    let mut two_digits = |below: u8| -> Option<u8> {
        let part = parts.next()?;
        let good = part.len() == 2 && part.bytes().all(|byte| byte.is_ascii_digit());
        part.parse().ok().filter(|value| good && *value < below)
    };
    let (hour, minute) = (two_digits(24)?, two_digits(60)?);
    let second = if text.len() > "HH:MM".len() {
        two_digits(60)?
    } else {
        0
    };
    parts
        .next()
        .is_none()
        .then_some(TimeOfDay { hour, minute, second })
}

/// The number of a weekday, Monday being 0.
pub(super) fn day(text: &str) -> Option<u8> {
    let known = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"];
    (0_u8..)
        .zip(known)
        .find(|(_, name)| *name == text)
        .map(|(number, _)| number)
}

/// A rate `MESSAGES/TIME`, such as `50/10s`.
pub(super) fn early_rate(text: &str) -> Option<Rate> {
    let (messages, within) = text.split_once('/')?;
    let digits = messages.bytes().all(|byte| byte.is_ascii_digit());
    let messages: u64 = messages.parse().ok().filter(|_| digits)?;
    let within: TimeSpan = within.parse().ok()?;
    Some(Rate { messages, within })
}

/// Whether the text has the form of a zone's name in the IANA database: parts such as `Europe`, `Buenos_Aires` or
/// `GMT+5`. No part can name another folder, since the text may become a path.
pub(super) fn is_zone(text: &str) -> bool {
    let is_part = |part: &str| {
        part.starts_with(|c: char| c.is_ascii_alphabetic())
            && part
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '+'))
    };
    (1..=64).contains(&text.len()) && text.split('/').all(is_part)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selectors() {
        let check = |text: &str, expected| assert_eq!(selector(text), expected, "{text}");
        check("topic:0", Some(Selector::Topic(0)));
        check("topic:12", Some(Selector::Topic(12)));
        check("field:", Some(Selector::Field(String::new())));
        check("field:/a/0/b~1c", Some(Selector::Field("/a/0/b~1c".to_owned())));
        for bad in [
            "",
            "topic:",
            "topic:-1",
            "topic:+1",
            "topic:65536",
            "field:a",
            "field:/~2",
            "field:/a~",
            "x:1",
        ] {
            check(bad, None);
        }
    }

    #[test]
    fn times_of_day() {
        let at = |hour, minute, second| Some(TimeOfDay { hour, minute, second });
        let check = |text: &str, expected| assert_eq!(time_of_day(text), expected, "{text}");
        check("06:00", at(6, 0, 0));
        check("23:59:59", at(23, 59, 59));
        for bad in [
            "",
            "6:00",
            "24:00",
            "06:60",
            "06:00:60",
            "06:00:",
            "06:00:00:00",
            "06:00:0",
            "0600",
            "+6:00",
            "06:0é",
        ] {
            check(bad, None);
        }
    }

    #[test]
    fn rates() {
        let rate = early_rate("50/10s").map(|rate| (rate.messages, rate.within.as_secs()));
        assert_eq!(rate, Some((50, 10)));
        for bad in ["", "50", "/10s", "50/", "50/10", "+5/1s", "-5/1s", "5 /1s"] {
            assert_eq!(early_rate(bad), None, "{bad}");
        }
    }

    #[test]
    fn zones() {
        for good in [
            "UTC",
            "CET",
            "Europe/Berlin",
            "America/Argentina/Buenos_Aires",
            "Etc/GMT+5",
        ] {
            assert!(is_zone(good), "{good}");
        }
        for bad in [
            "",
            "+02:00",
            "/etc/passwd",
            "Europe/",
            "../x",
            "Europe Berlin",
            "Europe/../x",
        ] {
            assert!(!is_zone(bad), "{bad}");
        }
    }

    #[test]
    fn field_names() {
        for good in ["a", "_x", "temp_C2", "value"] {
            assert!(is_field_name(good), "{good}");
        }
        for bad in ["", "2a", "a-b", "a.b", "ä", "not", "none", &"x".repeat(65)] {
            assert!(!is_field_name(bad), "{bad}");
        }
    }
}
