//! The JSON of dead letters: what could not be served, with its reason and the original.

use base64::Engine as _;
use phi_edge_api::DeadLetter;
use serde_json::{Map, Value, json};

use crate::json::to_json;
use crate::request::Payload;

/// The shortest run of base64 that is taken for a file and left out: longer than any word, shorter than any image.
const LEAST_FILE_CHARS: usize = 64;

/// Returns the beginning of a refused payload for its dead letter, without images: of a payload that is one nothing, in others
/// `…` in place of long base64.
pub fn original_without_images(payload: Payload<'_>) -> Vec<u8> {
    if payload.is_image() {
        return Vec::new();
    }
    // Written `\/` a slash has two characters.
    let is_base64 = |byte: &u8| byte.is_ascii_alphanumeric() || b"+/=\\-_".contains(byte);
    let mut kept = Vec::new();
    for run in payload.bytes.chunk_by(|a, b| is_base64(a) == is_base64(b)) {
        if kept.len() > DeadLetter::MAX_ORIGINAL_BYTES {
            break;
        }
        if run.len() >= LEAST_FILE_CHARS && run.first().is_some_and(is_base64) {
            kept.extend_from_slice("…".as_bytes());
        } else {
            kept.extend_from_slice(run);
        }
    }
    DeadLetter::beginning(&kept)
}

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
    fn images_are_left_out_of_originals() {
        let original = |bytes: &[u8], content_type| {
            original_without_images(Payload {
                bytes,
                content_type,
                question: None,
            })
        };
        let file = "iVBORw0KGgo/+A\\/".repeat(9);
        let body = format!(r#"{{"prompt":"x y","images":["{file}","{file}=="]}}"#);
        let kept = original(body.as_bytes(), None);
        assert_eq!(kept, r#"{"prompt":"x y","images":["…","…"]}"#.as_bytes());
        assert_eq!(original(b"\xff\xd8", Some("image/jpeg")), b"");
        assert_eq!(original("grün".as_bytes(), None), "grün".as_bytes());
        let long = "word ".repeat(DeadLetter::MAX_ORIGINAL_BYTES);
        assert_eq!(
            original(long.as_bytes(), None),
            DeadLetter::beginning(long.as_bytes())
        );
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
