//! The checks of names, topics and filters in the configuration (MQTT 5.0, section 4.7).

/// The maximum length of a topic or filter, in bytes. MQTT allows 65,535; ids and levels of clients are appended.
const MAX_TOPIC_LEN: usize = 1024;
/// The maximum length of a name that becomes one level of a topic, in bytes.
pub(crate) const MAX_NAME_LEN: usize = 64;

/// Whether the text can be one topic level and part of a client id: 1 to 64 of `A-Z a-z 0-9 . _ -`.
pub(crate) fn is_name(text: &str) -> bool {
    (1..=MAX_NAME_LEN).contains(&text.len()) && text.chars().all(is_name_char)
}

pub(crate) fn is_name_char(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-')
}

/// Whether the text can be put before `/request`: no wildcard, no empty level, no leading `$`.
pub(crate) fn is_base(text: &str) -> bool {
    is_topic(text) && text.split('/').all(|level| !level.is_empty())
}

/// Whether the text can be published to: no wildcard, no leading `$`.
pub(crate) fn is_topic(text: &str) -> bool {
    is_plain(text) && !text.contains(['+', '#'])
}

/// Whether the text is a topic filter that reaches no `$` topics.
pub(crate) fn is_filter(text: &str) -> bool {
    if !is_plain(text) {
        return false;
    }
    let last = text.split('/').count() - 1;
    text.split('/').enumerate().all(|(place, level)| match level {
        "+" => true,
        "#" => place == last,
        other => !other.contains(['+', '#']),
    })
}

fn is_plain(text: &str) -> bool {
    (1..=MAX_TOPIC_LEN).contains(&text.len()) && !text.starts_with('$') && !text.chars().any(char::is_control)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for good in ["a", "press-07", "gw_1.plant", &"x".repeat(64)] {
            assert!(is_name(good), "{good}");
        }
        for bad in ["", "a/b", "a b", "ä", "+", &"x".repeat(65)] {
            assert!(!is_name(bad), "{bad}");
        }
    }

    #[test]
    fn bases() {
        for good in ["phi-edge/v1/a", "x", "plant 1/ofen"] {
            assert!(is_base(good), "{good}");
        }
        for bad in [
            "",
            "/a",
            "a/",
            "a//b",
            "a/+",
            "#",
            "a#",
            "$SYS/a",
            "a\0b",
            "a\nb",
            &"x".repeat(1025),
        ] {
            assert!(!is_base(bad), "{bad}");
        }
    }

    #[test]
    fn filters() {
        for good in ["#", "+", "a/+/b", "a/#", "/a", "a//b", "+/+/#"] {
            assert!(is_filter(good), "{good}");
        }
        for bad in ["", "a/#/b", "a#", "a/b+", "$SYS/#", "$share/x/y", "a\0"] {
            assert!(!is_filter(bad), "{bad}");
        }
    }
}
