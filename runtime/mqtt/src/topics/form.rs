//! The form of topics: the check of what brokers accept, as far as the text tells.

use std::fmt;

use phi_edge_wire::is_interchange_char;

/// The most characters of a topic that a message quotes.
const MAX_QUOTED_CHARS: usize = 80;

/// The reason why brokers do not accept a topic. Its text never quotes the whole topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TopicFault {
    /// It has no characters.
    Empty,
    /// It has more bytes than an MQTT string can have (MQTT 5, section 1.5.4).
    Long {
        /// The topic's length.
        bytes: usize,
    },
    /// It has more levels than `mqtt.max_topic_levels`.
    Deep {
        /// The number of `/` in it.
        levels: usize,
        /// The configured bound.
        most: usize,
    },
    /// It begins with `$`, as the broker's own topics do.
    Reserved,
    /// It holds a wildcard, a control character or a non-character (MQTT 5, sections 1.5.4 and 4.7.1).
    Character {
        /// The first such character.
        character: char,
        /// The byte at which it stands.
        at: usize,
    },
}

impl fmt::Display for TopicFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the topic can't be published on: ")?;
        match self {
            Self::Empty => f.write_str("it is empty"),
            Self::Long { bytes } => write!(f, "it has {bytes} bytes, and MQTT takes {}", u16::MAX),
            Self::Deep { levels, most } => {
                write!(
                    f,
                    "it holds {levels} times a /, and mqtt.max_topic_levels is {most}"
                )
            }
            Self::Reserved => f.write_str("topics that begin with $ are the broker's own"),
            Self::Character { character, at } => write!(
                f,
                "it holds U+{:04X} at byte {at}; no +, # or control character and no Unicode non-character is allowed",
                u32::from(*character)
            ),
        }
    }
}

impl std::error::Error for TopicFault {}

/// Checks that brokers accept a topic to publish on.
pub(super) fn check(topic: &str, max_levels: usize) -> Result<(), TopicFault> {
    if topic.is_empty() {
        return Err(TopicFault::Empty);
    }
    if u16::try_from(topic.len()).is_err() {
        return Err(TopicFault::Long { bytes: topic.len() });
    }
    if topic.starts_with('$') {
        return Err(TopicFault::Reserved);
    }
    let bad = |c: &(usize, char)| matches!(c.1, '+' | '#') || !is_interchange_char(c.1);
    if let Some((at, character)) = topic.char_indices().find(bad) {
        return Err(TopicFault::Character { character, at });
    }
    let levels = topic.bytes().filter(|byte| *byte == b'/').count();
    if levels > max_levels {
        return Err(TopicFault::Deep {
            levels,
            most: max_levels,
        });
    }
    Ok(())
}

/// Whether brokers accept a text as an MQTT string: mosquitto ends the connection of a client that sends a control character
/// or a noncharacter in one, as MQTT 5, section 1.5.4 allows.
pub(crate) fn is_allowed_text(text: &str) -> bool {
    u16::try_from(text.len()).is_ok() && text.chars().all(is_interchange_char)
}

/// Returns the beginning of a text, with everything but printable ASCII escaped.
pub(crate) fn brief(text: &str) -> String {
    let mut quoted: String = text
        .chars()
        .take(MAX_QUOTED_CHARS)
        .flat_map(|character| {
            let plain =
                is_interchange_char(character) && character.is_ascii() && !matches!(character, '"' | '\\');
            let escaped = (!plain).then(|| character.escape_default());
            let kept = plain.then_some(character);
            kept.into_iter().chain(escaped.into_iter().flatten())
        })
        .collect();
    if text.chars().nth(MAX_QUOTED_CHARS).is_some() {
        quoted.push('…');
    }
    quoted
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_topic_is_what_brokers_take() {
        let check = |topic: &str| check(topic, 200);
        for good in [
            "a",
            "/",
            "a//b",
            "grün/ü",
            "a b",
            "\u{feff}",
            "\u{fff0}",
            &"a/".repeat(200),
        ] {
            assert_eq!(check(good), Ok(()), "{good:?}");
        }
        assert_eq!(check(""), Err(TopicFault::Empty));
        assert_eq!(check(&"a".repeat(65_535)), Ok(()));
        assert_eq!(
            check(&"a".repeat(65_536)),
            Err(TopicFault::Long { bytes: 65_536 })
        );
        assert_eq!(check("$SYS/x"), Err(TopicFault::Reserved));
        assert_eq!(
            check(&"a/".repeat(201)),
            Err(TopicFault::Deep {
                levels: 201,
                most: 200
            })
        );
        for bad in [
            '\0',
            '\u{1}',
            '\u{1f}',
            '\u{7f}',
            '\u{9f}',
            '\u{fdd0}',
            '\u{fdef}',
            '\u{fffe}',
            '\u{ffff}',
            '\u{1fffe}',
            '\u{10ffff}',
            '+',
            '#',
        ] {
            let fault = check(&format!("ab/{bad}"));
            assert_eq!(
                fault,
                Err(TopicFault::Character {
                    character: bad,
                    at: 3
                })
            );
        }
    }

    proptest! {
        #[test]
        fn quotes_are_short_and_plain(text in any::<String>()) {
            let quoted = brief(&text);
            prop_assert!(quoted.chars().all(|c| (' '..='~').contains(&c) || c == '…'), "{quoted}");
            prop_assert!(quoted.chars().count() <= MAX_QUOTED_CHARS * 10 + 1);
        }

        #[test]
        fn a_fault_never_quotes_the_topic(topic in "\\PC{100,200}") {
            if let Err(fault) = check(&topic, 3) {
                prop_assert!(fault.to_string().len() < 200);
            }
        }
    }
}
