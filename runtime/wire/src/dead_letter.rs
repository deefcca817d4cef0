//! The JSON of dead letters: what could not be served, with its reason and the original.

use phi_edge_api::DeadLetter;
use phi_edge_rules::format_of;
use serde_json::{Map, Value, json};

use crate::json::to_json;
use crate::quote::without_files;
use crate::request::Payload;

/// Returns the beginning of a refused payload for its dead letter, without images: of an image, and of all that is no text,
/// nothing; of a text `…` in place of long base64.
pub fn original_without_images(payload: Payload<'_>) -> Vec<u8> {
    let bytes = payload.bytes;
    if payload.is_image() || format_of(bytes).is_some() || std::str::from_utf8(bytes).is_err() {
        return Vec::new();
    }
    DeadLetter::beginning(&without_files(bytes, DeadLetter::MAX_ORIGINAL_BYTES))
}

/// Returns the payload of a dead letter of the node `node`. A long original is cut; of a binary one, which an
/// earlier version of the program has stored, nothing is told but its length: it may be an image.
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
    letter.insert("payload".into(), cut.unwrap_or_default().into());
    if is_cut || cut.is_none() {
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
        let wrapped = format!("{}\n{}\nAAAA==\"]}} x", "A".repeat(76), "A".repeat(76));
        assert_eq!(original(wrapped.as_bytes(), None), "…\n…\n…\"]} x".as_bytes());
        assert_eq!(original(b"\xff\xd8", Some("image/jpeg")), b"");
        // The content type was forgotten, or is wrong.
        for file in [
            &b"\xff\xd8\xff\xe0 and so on"[..],
            b"\x89PNG\r\n\x1a\n and so on",
            b"RIFF1234WEBPVP8 ",
            b"GIF89a\xff",
            b"{\"prompt\":\"\xff\xd8\"}",
        ] {
            for content_type in [None, Some("application/json"), Some("text/plain")] {
                assert_eq!(original(file, content_type), b"", "{file:?}");
            }
        }
        assert_eq!(original("grün".as_bytes(), None), "grün".as_bytes());
        let long = "word ".repeat(DeadLetter::MAX_ORIGINAL_BYTES);
        assert_eq!(
            original(long.as_bytes(), None),
            DeadLetter::beginning(long.as_bytes())
        );
    }

    #[test]
    fn texts_stay_texts_and_the_rest_is_left_out() {
        let text = read("grün".as_bytes());
        assert_eq!((&text["payload"], text.get("truncated")), (&json!("grün"), None));
        let binary = read(b"\xff\xd8\xff\x00");
        let told = (&binary["payload"], &binary["bytes"], &binary["truncated"]);
        assert_eq!(told, (&json!(""), &json!(4), &json!(true)));
        assert!(binary.get("payload_base64").is_none());
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
