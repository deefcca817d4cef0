//! Pictures in messages: what is known of a payload without decoding it, and which of a window's pictures the model is shown.

use std::fmt::Write as _;
use std::sync::Arc;

use serde_json::{Value as Json, json};
use sha2::{Digest, Sha256};

use crate::Time;

/// The pictures of a window that the model is shown, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PictureSpec {
    /// Which of them.
    pub choice: PictureChoice,
    /// How closely the model looks at them.
    pub detail: PictureDetail,
}

/// A choice among the pictures of a window. Only the bytes of those that it may choose are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PictureChoice {
    /// The newest.
    #[default]
    Newest,
    /// The first.
    First,
    /// The newest of this number, on one sheet.
    Sheet(usize),
}

impl PictureChoice {
    /// The chosen of a window's pictures, which ascend by time; in the same order.
    pub(crate) fn of<T>(self, mut pictures: impl DoubleEndedIterator<Item = T>) -> Vec<T> {
        let newest = match self {
            Self::First => return pictures.next().into_iter().collect(),
            Self::Newest => 1,
            Self::Sheet(pictures) => pictures,
        };
        let mut chosen: Vec<T> = pictures.rev().take(newest).collect();
        chosen.reverse();
        chosen
    }
}

/// How closely the model looks at a picture.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PictureDetail {
    /// As one crop.
    Low,
    /// As many crops as the node's configuration says.
    #[default]
    Auto,
    /// As 16 crops.
    High,
}

/// A picture that the model is shown. Its content is in no log: `Debug` shows its size.
#[derive(Clone, PartialEq, Eq)]
pub struct ShownPicture {
    /// Its timestamp: its arrival or its event time.
    pub time: Time,
    /// Its topic.
    pub topic: String,
    /// The file as the device sent it.
    pub file: Arc<[u8]>,
}

impl ShownPicture {
    /// Its cost in memory, and about as much on the disk, in bytes.
    pub fn cost(&self) -> u64 {
        const ROW_BYTES: usize = 64;
        (ROW_BYTES + self.topic.len() + self.file.len()) as u64
    }
}

impl std::fmt::Debug for ShownPicture {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ShownPicture")
            .field("time", &self.time)
            .field("topic", &self.topic)
            .field("bytes", &self.file.len())
            .finish()
    }
}

/// The format of a picture by its first bytes; `None` for anything but PNG, JPEG and WebP.
pub fn format_of(payload: &[u8]) -> Option<&'static str> {
    match payload {
        [0x89, b'P', b'N', b'G', 0x0D, 0x0A, 0x1A, 0x0A, ..] => Some("png"),
        [0xFF, 0xD8, 0xFF, ..] => Some("jpeg"),
        [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] => Some("webp"),
        _ => None,
    }
}

/// What is known of a payload that came as a picture: `bytes`, `format` and `digest`.
pub(crate) fn facts(payload: &[u8]) -> Json {
    let mut digest = String::with_capacity(64);
    for byte in Sha256::digest(payload) {
        let _ = write!(digest, "{byte:02x}");
    }
    json!({ "bytes": payload.len(), "format": format_of(payload).unwrap_or("unknown"), "digest": digest })
}

/// A line about a picture, for a prompt: its format and size.
pub(crate) fn description(kept: &[u8]) -> String {
    let facts = facts_of_kept(kept);
    let format = facts["format"].as_str().unwrap_or("unknown");
    format!("{format}, {} bytes", facts["bytes"])
}

/// What is kept of a payload that is never shown: [`facts`] as text. No picture begins as it does.
pub(crate) fn without_content(payload: &[u8]) -> Vec<u8> {
    facts(payload).to_string().into_bytes()
}

/// As [`facts`] of a payload as it is kept: whole, or as [`without_content`] gives it.
pub(crate) fn facts_of_kept(kept: &[u8]) -> Json {
    let described = || serde_json::from_slice(kept).ok().filter(Json::is_object);
    match format_of(kept) {
        Some(_) => facts(kept),
        None => described().unwrap_or_else(|| facts(kept)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn choices() {
        let check = |choice: PictureChoice, expected: &[i32]| {
            assert_eq!(choice.of([1, 2, 3, 4].into_iter()), expected)
        };
        check(PictureChoice::First, &[1]);
        check(PictureChoice::Newest, &[4]);
        check(PictureChoice::Sheet(3), &[2, 3, 4]);
        check(PictureChoice::Sheet(9), &[1, 2, 3, 4]);
        for choice in [
            PictureChoice::First,
            PictureChoice::Newest,
            PictureChoice::Sheet(2),
        ] {
            assert!(choice.of(std::iter::empty::<i32>()).is_empty());
        }
    }

    #[test]
    fn facts_outlive_the_content() {
        let jpeg = b"\xFF\xD8\xFF\xE0 and so on";
        for payload in [
            &jpeg[..],
            b"\x89PNG\r\n\x1A\n",
            b"RIFF1234WEBPVP8 ",
            b"no picture",
            b"{}",
            b"",
        ] {
            let kept = without_content(payload);
            assert!(format_of(&kept).is_none());
            assert_eq!(facts_of_kept(&kept), facts(payload));
        }
        assert_eq!(facts(jpeg)["format"], "jpeg");
        assert_eq!(facts(b"no picture")["format"], "unknown");
        assert_eq!(facts_of_kept(jpeg), facts(jpeg));
    }

    #[test]
    fn no_content_in_debug() {
        let shown = ShownPicture {
            time: Time(0),
            topic: "gate".to_owned(),
            file: b"secret".as_slice().into(),
        };
        let text = format!("{shown:?}");
        assert!(text.contains("bytes: 6") && !text.contains("115"), "{text}");
    }
}
