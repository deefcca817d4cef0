//! The JSON of a cancellation: `{"id":…}`.

use serde::Deserialize;

use crate::id::check_id;
use crate::strict::Object;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Cancel {
    id: String,
}

/// Reads a cancellation and returns the id of the request to cancel.
///
/// # Errors
/// One line that says what is wrong with the payload.
pub fn parse_cancel(payload: &[u8]) -> Result<String, String> {
    let Object(Cancel { id }) = serde_json::from_slice(payload)
        .map_err(|error| format!("a cancellation must be {{\"id\":…}}: {error}"))?;
    check_id(&id)?;
    Ok(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_an_id_and_nothing_else() {
        assert_eq!(parse_cancel(br#"{"id":"a-1"}"#).as_deref(), Ok("a-1"));
        for bad in [
            &b""[..],
            b"x",
            b"{}",
            b"{\"id\":3}",
            b"{\"id\":\"a b\"}",
            b"{\"id\":\"a\",\"x\":1}",
            b"{\"id\":\"a\",\"id\":\"a\"}",
            b"[\"a\"]",
            b"{\"id\":\"a\"} x",
            b"\xff",
        ] {
            assert!(parse_cancel(bad).is_err());
        }
    }
}
