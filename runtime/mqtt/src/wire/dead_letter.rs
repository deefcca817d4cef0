//! What could not be served, with its reason and the original.

use base64::Engine as _;
use serde_json::{Map, Value, json};

/// The most bytes of an original that a dead letter repeats.
const ORIGINAL: usize = 64 << 10;

/// A dead letter: why, and what came (or should have gone) where. Binary payloads are base64, long ones cut.
pub fn dead_letter(
    code: &str,
    message: &str,
    topic: &str,
    id: Option<&str>,
    node: &str,
    payload: &[u8],
) -> Vec<u8> {
    let mut letter = Map::new();
    letter.insert("reason".into(), code.into());
    letter.insert("message".into(), message.into());
    letter.insert("topic".into(), topic.into());
    if let Some(id) = id {
        letter.insert("id".into(), id.into());
    }
    letter.insert("node".into(), node.into());
    letter.insert("bytes".into(), payload.len().into());
    let kept = payload.get(..ORIGINAL).unwrap_or(payload);
    let cut = match std::str::from_utf8(kept) {
        Ok(text) => Some(text),
        // A character cut in half at the end does not make a text binary.
        Err(error) if kept.len() < payload.len() && error.error_len().is_none() => {
            std::str::from_utf8(&kept[..error.valid_up_to()]).ok()
        }
        Err(_) => None,
    };
    match cut {
        Some(text) => letter.insert("payload".into(), text.into()),
        None => letter.insert(
            "payload_base64".into(),
            base64::engine::general_purpose::STANDARD.encode(kept).into(),
        ),
    };
    if kept.len() < payload.len() {
        letter.insert("truncated".into(), json!(true));
    }
    Value::Object(letter).to_string().into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(payload: &[u8]) -> Value {
        serde_json::from_slice(&dead_letter("bad_request", "m", "t", Some("i"), "n", payload)).expect("JSON")
    }

    #[test]
    fn texts_stay_texts_and_the_rest_is_base64() {
        assert_eq!(read("grün".as_bytes())["payload"], "grün");
        assert_eq!(read(b"\xff\x00")["payload_base64"], "/wA=");
    }

    #[test]
    fn long_ones_are_cut_between_characters() {
        let long = "ü".repeat(ORIGINAL);
        let mut odd = b"a".to_vec();
        odd.extend(long.as_bytes());
        let letter = read(&odd);
        assert_eq!(letter["truncated"], true);
        assert_eq!(letter["bytes"], odd.len());
        assert!(letter["payload"].as_str().is_some_and(|text| text.ends_with('ü')));
    }
}
