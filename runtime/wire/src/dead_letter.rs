//! The JSON of dead letters: what could not be served, with its reason and the original.

use base64::Engine as _;
use phi_edge_api::DeadLetter;
use serde_json::{Map, Value, json};

use crate::json::to_json;

/// Returns the payload of a dead letter of the node `node`. A binary original is in base64, a long one is cut.
pub fn encode_dead_letter(dead: &DeadLetter, node: &str) -> Vec<u8> {
    let kept = dead.payload.as_slice();
    let is_cut = kept.len() < dead.bytes;
    let mut letter = Map::new();
    letter.insert("reason".into(), dead.reason.clone().into());
    letter.insert("message".into(), dead.message.clone().into());
    letter.insert("topic".into(), dead.topic.clone().into());
    if let Some(id) = &dead.id {
        letter.insert("id".into(), id.clone().into());
    }
    letter.insert("node".into(), node.into());
    letter.insert("bytes".into(), dead.bytes.into());
    let cut = match std::str::from_utf8(kept) {
        Ok(text) => Some(text),
        // A character cut in half at the end does not make a text binary.
        Err(error) if is_cut && error.error_len().is_none() => {
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
    if is_cut {
        letter.insert("truncated".into(), json!(true));
    }
    to_json(&Value::Object(letter))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(payload: &[u8]) -> Value {
        let dead = DeadLetter {
            reason: "bad_request".into(),
            message: "m".into(),
            topic: "t".into(),
            id: Some("i".into()),
            payload: DeadLetter::beginning(payload),
            bytes: payload.len(),
        };
        serde_json::from_slice(&encode_dead_letter(&dead, "n")).expect("JSON")
    }

    #[test]
    fn texts_stay_texts_and_the_rest_is_base64() {
        assert_eq!(read("grün".as_bytes())["payload"], "grün");
        assert_eq!(read(b"\xff\x00")["payload_base64"], "/wA=");
    }

    #[test]
    fn long_ones_are_cut_between_characters() {
        let long = "ü".repeat(DeadLetter::MAX_ORIGINAL_BYTES);
        let mut odd = b"a".to_vec();
        odd.extend(long.as_bytes());
        let letter = read(&odd);
        assert_eq!(letter["truncated"], true);
        assert_eq!(letter["bytes"], odd.len());
        assert!(letter["payload"].as_str().is_some_and(|text| text.ends_with('ü')));
    }
}
