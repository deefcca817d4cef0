//! A message in prompts.

use crate::{Time, Value};

/// The most bytes of a message's payload, and of each text among its fields, in a prompt.
pub const MAX_PROMPT_TEXT_BYTES: usize = 4096;

/// The mark at the end of a text that was cut.
pub const CUT_MARK: &str = "…[cut]";

/// The private-use characters with which `phi_edge_models` marks spellings of control tokens; in texts they are
/// replaced. It can't encode a conversation that uses all of them, so one hostile message could otherwise silence a
/// rule.
const RESERVED_CHARACTERS: std::ops::RangeInclusive<char> = '\u{F8A0}'..='\u{F8FF}';

/// A message in prompts: text of bounded size.
#[derive(Debug, Clone, PartialEq)]
pub struct PromptMessage {
    time: Time,
    topic: String,
    payload: String,
    fields: Vec<(String, Value)>,
}

impl PromptMessage {
    /// A message with its payload as text and all texts cut to [`MAX_PROMPT_TEXT_BYTES`].
    pub fn new(time: Time, topic: &str, payload: &[u8], fields: Vec<(String, Value)>) -> Self {
        let fields = fields
            .into_iter()
            .map(|(name, value)| match value {
                Value::Text(held) => (
                    name,
                    Value::Text(bounded_text(held.as_bytes(), MAX_PROMPT_TEXT_BYTES)),
                ),
                Value::Number(_) => (name, value),
            })
            .collect();
        Self {
            time,
            topic: bounded_text(topic.as_bytes(), MAX_PROMPT_TEXT_BYTES),
            payload: bounded_text(payload, MAX_PROMPT_TEXT_BYTES),
            fields,
        }
    }

    /// Its timestamp.
    pub fn time(&self) -> Time {
        self.time
    }

    /// Its topic.
    pub fn topic(&self) -> &str {
        &self.topic
    }

    /// Its payload as text.
    pub fn payload(&self) -> &str {
        &self.payload
    }

    /// The values of the rule's fields, in the rule's order.
    pub fn fields(&self) -> &[(String, Value)] {
        &self.fields
    }

    /// The same message with each of its texts cut to `cap` bytes.
    pub(super) fn cut(&self, cap: usize) -> Self {
        let mut cut = self.clone();
        cut.payload = bounded_text(self.payload.as_bytes(), cap);
        for (_, value) in &mut cut.fields {
            if let Value::Text(held) = value {
                *held = bounded_text(held.as_bytes(), cap);
            }
        }
        cut
    }

    /// The longest of its texts that can be cut, in bytes.
    pub(super) fn longest_text(&self) -> usize {
        let fields = self.fields.iter().map(|(_, value)| match value {
            Value::Text(held) => held.len(),
            Value::Number(_) => 0,
        });
        fields.chain([self.payload.len()]).max().unwrap_or(0)
    }
}

/// Untrusted bytes as text: invalid UTF-8 becomes U+FFFD, and the bytes beyond `cap` become [`CUT_MARK`].
pub fn bounded_text(bytes: &[u8], cap: usize) -> String {
    let cut = bytes.len() > cap;
    let mut end = bytes.len().min(cap);
    // Not within a character: its continuation bytes begin with the bits 10.
    while cut && end > 0 && bytes[end] & 0b1100_0000 == 0b1000_0000 {
        end -= 1;
    }
    let mut text = String::from_utf8_lossy(&bytes[..end]).into_owned();
    if text.contains(|c| RESERVED_CHARACTERS.contains(&c)) {
        text = text.replace(|c| RESERVED_CHARACTERS.contains(&c), "\u{FFFD}");
    }
    if cut {
        text.push_str(CUT_MARK);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_of_bytes() {
        let check = |bytes: &[u8], cap, expected: &str| assert_eq!(bounded_text(bytes, cap), expected);
        check(b"21.5", 10, "21.5");
        check(b"", 0, "");
        check(b"abc", 3, "abc");
        check(b"abcd", 3, "abc…[cut]");
        check("aäöü".as_bytes(), 4, "aä…[cut]");
        check("aäöü".as_bytes(), 2, "a…[cut]");
        check("ä".as_bytes(), 0, "…[cut]");
        check(b"\xff\xfeok", 10, "\u{FFFD}\u{FFFD}ok");
        check("a\u{F8A0}\u{F8FF}b".as_bytes(), 10, "a\u{FFFD}\u{FFFD}b");
    }

    #[test]
    fn cutting_leaves_numbers_alone() {
        let fields = vec![
            ("state".to_owned(), Value::Text("overheated".into())),
            ("value".to_owned(), Value::Number(81.6)),
        ];
        let cut = PromptMessage::new(Time(0), "plant/1", b"a long payload", fields).cut(4);
        assert_eq!(cut.payload(), "a lo…[cut]");
        assert_eq!(cut.fields()[0].1, Value::Text("over…[cut]".into()));
        assert_eq!(cut.fields()[1].1, Value::Number(81.6));
        assert_eq!(cut.topic(), "plant/1");
    }
}
