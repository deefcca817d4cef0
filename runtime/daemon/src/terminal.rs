//! Untrusted text on a terminal: control sequences are shown as escapes.
//!
//! Models, brokers and every publisher choose such texts: titles, colours, moves of the cursor and worse are control
//! sequences, and marks of the writing direction show a text in another order than it has.

use std::borrow::Cow;
use std::fmt::Write as _;

/// Ends the process without a word when what it prints is not read on (`phi-edge check | head`), in place of a panic.
pub(crate) fn end_on_closed_pipe() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        let text = panic.payload().downcast_ref::<String>();
        if text.is_some_and(|text| text.starts_with("failed printing to std") && text.contains("Broken pipe"))
        {
            std::process::exit(0);
        }
        report(panic);
    }));
}

/// A text on one line.
pub(crate) fn line(text: &str) -> Cow<'_, str> {
    escaped(text, commands, |out, c| out.extend(c.escape_default()))
}

/// A text of several lines: line ends and tabs stay.
pub(crate) fn text(text: &str) -> Cow<'_, str> {
    let hostile = |c| commands(c) && !matches!(c, '\n' | '\t');
    escaped(text, hostile, |out, c| out.extend(c.escape_default()))
}

/// A JSON text, of the same value: what JSON itself leaves as it is becomes an escape of JSON's.
pub(crate) fn json(text: &str) -> Cow<'_, str> {
    // Control characters of ASCII are escaped within its strings already.
    let hostile = |c: char| commands(c) && c >= '\u{7F}';
    escaped(text, hostile, |out, c| {
        // Writing to a String can't fail.
        let _ = write!(out, "\\u{:04x}", u32::from(c));
    })
}

/// Whether a terminal may take a character for something other than a part of the text: control characters (C0, DEL and
/// C1), the separators of lines and paragraphs, and the embeddings, overrides and isolates of the Unicode Bidirectional
/// Algorithm (UAX #9, section 2).
fn commands(c: char) -> bool {
    c.is_control() || matches!(c, '\u{2028}'..='\u{202E}' | '\u{2066}'..='\u{2069}')
}

fn escaped(text: &str, hostile: impl Fn(char) -> bool, escape: impl Fn(&mut String, char)) -> Cow<'_, str> {
    if !text.contains(&hostile) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if hostile(c) {
            escape(&mut out, c);
        } else {
            out.push(c);
        }
    }
    Cow::Owned(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All that is shown as an escape.
    fn hostile() -> impl Iterator<Item = char> {
        ('\0'..='\u{1F}')
            .chain('\u{7F}'..='\u{9F}')
            .chain('\u{202A}'..='\u{202E}')
            .chain('\u{2066}'..='\u{2069}')
    }

    #[test]
    fn nothing_that_commands_a_terminal_is_left() {
        let all: String = hostile().collect();
        assert!(!line(&all).contains(commands), "{}", line(&all));
        let kept: String = text(&all).chars().filter(|c| commands(*c)).collect();
        assert_eq!(kept, "\t\n");
        assert_eq!(line("\u{1b}[31mred\n\u{9b}2J"), "\\u{1b}[31mred\\n\\u{9b}2J");
        assert_eq!(text("a\tb\nc\r\u{202e}"), "a\tb\nc\\r\\u{202e}");
    }

    #[test]
    fn other_text_stays_as_it_is() {
        for kept in ["", "ready", "Öl – 日本語 🙂", "שלום \u{200F}1", "C:\\temp"] {
            assert_eq!(line(kept), kept);
            assert_eq!(text(kept), kept);
            assert_eq!(json(kept), kept);
        }
    }

    #[test]
    fn json_keeps_its_value() {
        let value = serde_json::json!({ "text": hostile().collect::<String>() });
        let written = serde_json::to_string_pretty(&value).expect("JSON");
        let shown = json(&written);
        assert!(!shown.contains(|c| commands(c) && c != '\n'), "{shown}");
        assert_eq!(
            serde_json::from_str::<serde_json::Value>(&shown).expect("JSON"),
            value
        );
    }
}
