//! The form of ids of requests and sessions.

use crate::quote::brief;

/// Checks that a request's id is 1 to 64 of `A-Z a-z 0-9 . _ -`.
///
/// # Errors
/// One line that says what is wrong.
pub fn check_id(id: &str) -> Result<(), String> {
    check_name(id).map_err(|reason| format!("id: {reason}"))
}

/// Checks the form alone: the error does not name the field.
pub(crate) fn check_name(name: &str) -> Result<(), String> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if (1..=64).contains(&name.len()) && name.chars().all(allowed) {
        return Ok(());
    }
    Err(format!(
        "{} is no id: 1 to 64 of A-Z a-z 0-9 . _ - are",
        brief(name)
    ))
}
