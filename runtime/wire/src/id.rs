//! The form of the names that clients give: ids of requests and of sessions.

use crate::quote::brief;

/// Whether `id` is 1 to 64 of `A-Z a-z 0-9 . _ -`; the error says what is wrong.
pub fn valid_id(id: &str) -> Result<(), String> {
    valid_name(id).map_err(|reason| format!("id: {reason}"))
}

/// As [`valid_id`]; the error does not say which field is wrong.
pub(crate) fn valid_name(name: &str) -> Result<(), String> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if (1..=64).contains(&name.len()) && name.chars().all(allowed) {
        return Ok(());
    }
    Err(format!(
        "{} is no id: 1 to 64 of A-Z a-z 0-9 . _ - are",
        brief(name)
    ))
}
