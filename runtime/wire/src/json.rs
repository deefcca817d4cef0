//! The writing of JSON whose strings hold only characters that every receiver takes as text.

use std::io;

use serde::Serialize;
use serde_json::Serializer;
use serde_json::ser::Formatter;

/// Returns the compact JSON of a message. Control characters and Unicode noncharacters are escaped: a payload that is declared
/// as text must be text to every checker (MQTT 5, section 1.5.4, for one).
pub fn to_json(message: &impl Serialize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(256);
    let mut serializer = Serializer::with_formatter(&mut bytes, InterchangeFormatter);
    match message.serialize(&mut serializer) {
        Ok(()) => bytes,
        // Messages consist of strings, numbers and JSON, which can always be written.
        Err(_) => Vec::new(),
    }
}

/// Whether a character is meant for open interchange: neither a control character nor a noncharacter (Unicode, section 23.7).
pub fn is_interchange_char(character: char) -> bool {
    let code = u32::from(character);
    let non_character = (0xFDD0..=0xFDEF).contains(&code) || code & 0xFFFE == 0xFFFE;
    !character.is_control() && !non_character
}

/// The formatter behind [`to_json`].
struct InterchangeFormatter;

impl Formatter for InterchangeFormatter {
    fn write_string_fragment<W>(&mut self, writer: &mut W, fragment: &str) -> io::Result<()>
    where
        W: ?Sized + io::Write,
    {
        write_escaped(writer, fragment)
    }

    /// Raw JSON is passed on as it is: such characters stand only in its strings.
    fn write_raw_fragment<W>(&mut self, writer: &mut W, fragment: &str) -> io::Result<()>
    where
        W: ?Sized + io::Write,
    {
        write_escaped(writer, fragment)
    }
}

fn write_escaped<W>(writer: &mut W, fragment: &str) -> io::Result<()>
where
    W: ?Sized + io::Write,
{
    // Whitespace stands between the tokens of raw JSON.
    let refused = |c: char| !is_interchange_char(c) && !matches!(c, '\t' | '\n' | '\r');
    let mut rest = fragment;
    while let Some((before, found)) = rest.find(refused).and_then(|at| {
        let (before, from) = rest.split_at(at);
        Some((before, from.chars().next()?))
    }) {
        writer.write_all(before.as_bytes())?;
        for unit in found.encode_utf16(&mut [0; 2]) {
            write!(writer, "\\u{unit:04x}")?;
        }
        rest = rest.get(before.len() + found.len_utf8()..).unwrap_or_default();
    }
    writer.write_all(rest.as_bytes())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::value::RawValue;
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn what_a_broker_may_refuse_is_escaped() {
        let text = |value: &Value| String::from_utf8(to_json(value)).expect("UTF-8");
        assert_eq!(text(&json!({"a": "x\u{ffff}y"})), r#"{"a":"x\uffffy"}"#);
        assert_eq!(
            text(&json!("\u{1fffe}\u{7f}\u{9f}\n")),
            r#""\ud83f\udffe\u007f\u009f\n""#
        );
        let raw = RawValue::from_string("{\n \"a\": \"\u{fdd0}\"}".to_owned()).expect("JSON");
        assert_eq!(to_json(&raw), b"{\n \"a\": \"\\ufdd0\"}");
    }

    proptest! {
        #[test]
        fn it_means_the_same(text in any::<String>(), key in any::<String>()) {
            let value = json!({ key: [text, 1.5, null] });
            let bytes = to_json(&value);
            let written = std::str::from_utf8(&bytes).expect("UTF-8");
            prop_assert!(written.chars().all(is_interchange_char), "{written:?}");
            prop_assert_eq!(serde_json::from_str::<Value>(written).expect("JSON"), value);
        }
    }
}
