//! The check of plain texts.

/// Whether a text can be a value: neither empty nor very long, without control characters.
pub(crate) fn is_text(text: &str) -> bool {
    (1..=1024).contains(&text.len()) && !text.chars().any(char::is_control)
}
