//! The faults of the entries of tables.

use toml::Value;

use crate::plain_text::is_text;
use crate::rules::{is_field_name, is_pointer};

/// The fault of a field of a rule, if it has one.
pub(crate) fn wrong_pointer(name: &str, pointer: &Value) -> Option<String> {
    if !is_field_name(name) {
        return Some(format!(
            "{name:?} can't be a name, since templates use names: letters, digits and _, not begun by a digit, at \
             most 64, and no word of theirs such as \"not\""
        ));
    }
    let good = pointer.as_str().is_some_and(is_pointer);
    (!good).then(|| format!("{name} is no JSON pointer; write \"/a/b\", or \"\" for the whole payload"))
}

/// The fault of an option, if it has one.
pub(crate) fn wrong_option(name: &str, option: &Value) -> Option<String> {
    if !is_text(name) {
        return Some(format!("{name:?} can't be the name of an option"));
    }
    let good = option
        .as_str()
        .is_some_and(|text| text.is_empty() || is_text(text));
    (!good).then(|| {
        format!(
            "{name} is no text without control characters; write numbers and switches in quotes, as in \"1\""
        )
    })
}
