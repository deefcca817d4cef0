//! The images of a request: base64 strings, data URLs, or the payload itself.

use std::sync::Arc;

use base64::Engine as _;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use phi_edge_api::{Detail, RequestImage};

use super::FieldError;
use super::body::DetailName;
use crate::quote::brief;
use crate::strict::Word;

/// The media types that are read, for error messages.
const MEDIA_TYPES: &str = "image/png, image/jpeg or image/webp";

/// Base64 with the standard alphabet, strict but for its padding, which many encoders leave out.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// The images of a request, collected in the order of their indices and counted before each is decoded.
pub(super) struct Images {
    files: Vec<RequestImage>,
    limit: usize,
    detail: Detail,
}

impl Images {
    /// No images yet of at most `limit`; `detail` is that of images which name none.
    pub(super) fn new(limit: usize, detail: Option<&Word<DetailName>>) -> Self {
        Self {
            files: Vec::new(),
            limit,
            detail: detail_of(detail).unwrap_or_default(),
        }
    }

    /// Checks the number of images that are known to come.
    pub(super) fn check_count(&self, count: usize) -> Result<(), FieldError> {
        if count <= self.limit {
            return Ok(());
        }
        Err(FieldError::too_large(format!(
            "images: the request has more than {}, which is limits.images",
            self.limit
        )))
    }

    /// Takes an image in base64, which the field `at` has, and returns its index.
    pub(super) fn take(
        &mut self,
        at: &str,
        encoded: &str,
        detail: Option<&Word<DetailName>>,
    ) -> Result<usize, FieldError> {
        self.check_count(self.files.len() + 1)?;
        let file = decode(encoded).map_err(|reason| FieldError::malformed(format!("{at}: {reason}")))?;
        let detail = detail_of(detail).unwrap_or(self.detail);
        self.files.push(RequestImage { file, detail });
        Ok(self.files.len() - 1)
    }

    pub(super) fn into_files(self) -> Vec<RequestImage> {
        self.files
    }
}

fn detail_of(word: Option<&Word<DetailName>>) -> Option<Detail> {
    word.map(|Word(name)| match name {
        DetailName::Low => Detail::Low,
        DetailName::Auto => Detail::Auto,
        DetailName::High => Detail::High,
    })
}

/// Decodes base64 into the only copy of the file.
fn decode(encoded: &str) -> Result<Arc<[u8]>, String> {
    let digits = encoded.trim_end_matches('=');
    if digits.is_empty() {
        return Err("is empty".into());
    }
    let bytes = digits.len() / 4 * 3 + (digits.len() % 4).saturating_sub(1);
    let mut file: Arc<[u8]> = std::iter::repeat_n(0, bytes).collect();
    let written = Arc::get_mut(&mut file).and_then(|buffer| BASE64.decode_slice(encoded, buffer).ok());
    if written == Some(bytes) {
        Ok(file)
    } else {
        Err(format!("is not base64: {}", fault(digits)))
    }
}

/// Returns what is wrong with base64 (without its padding), and quotes nothing of it.
fn fault(digits: &str) -> String {
    if digits.starts_with("data:") {
        return "it is a data URL, of which only what follows the comma belongs here".into();
    }
    if digits.contains("://") {
        return "it is a URL, and nothing is ever fetched: send the file itself in base64".into();
    }
    let mut bytes = digits.bytes().enumerate();
    match bytes.find(|(_, byte)| !byte.is_ascii_alphanumeric() && !matches!(byte, b'+' | b'/')) {
        Some((at, byte)) if byte.is_ascii_whitespace() => {
            format!("byte {at} is white space, encode without line breaks (base64 -w0)")
        }
        Some((at, b'-' | b'_')) => {
            format!("byte {at} is of the alphabet for URLs, encode with the standard one")
        }
        Some((at, _)) => format!("byte {at} is the first wrong one"),
        None => "its length or its last character is wrong, perhaps it is cut off".into(),
    }
}

/// Returns the base64 of a data URL `data:image/…;base64,…`.
pub(super) fn data_url(url: &str) -> Result<&str, String> {
    let (scheme, rest) = url.split_once(':').unwrap_or(("", url));
    if !scheme.eq_ignore_ascii_case("data") {
        return Err("must be a data URL (data:image/jpeg;base64,…): nothing is ever fetched".into());
    }
    let Some((head, encoded)) = rest.split_once(',') else {
        return Err("is a data URL without a comma before its data".into());
    };
    let Some((media_type, "base64")) = head.rsplit_once(';') else {
        return Err("is a data URL without ;base64 before the comma".into());
    };
    check_media_type(media_type)?;
    Ok(encoded)
}

/// Whether a payload of this content type is an image, also of a type that is not read.
pub(super) fn is_image(content_type: &str) -> bool {
    let kind = content_type.trim_start().as_bytes().first_chunk::<6>();
    kind.is_some_and(|kind| kind.eq_ignore_ascii_case(b"image/"))
}

/// Refuses media types other than those that are read. What the file is its own bytes say.
pub(super) fn check_media_type(named: &str) -> Result<(), String> {
    let media_type = named.split(';').next().unwrap_or_default().trim();
    // image/jpg is not registered, but common.
    let known = ["image/png", "image/jpeg", "image/jpg", "image/webp"];
    if known.iter().any(|known| media_type.eq_ignore_ascii_case(known)) {
        return Ok(());
    }
    Err(format!("{} is not read, send {MEDIA_TYPES}", brief(media_type)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn base64_is_strict_but_for_its_padding() {
        for (encoded, file) in [
            ("eA==", "x"),
            ("eA", "x"),
            ("eHk=", "xy"),
            ("eHk", "xy"),
            ("eHl6", "xyz"),
        ] {
            assert_eq!(decode(encoded).as_deref(), Ok(file.as_bytes()), "{encoded}");
        }
        for (encoded, says) in [
            ("", "empty"),
            ("==", "empty"),
            ("e", "length"),
            ("eA===", "length"),
            ("eH l6", "white space"),
            ("eHl6\n", "white space"),
            ("eHl6\r\neHl6", "white space"),
            ("-_-_", "alphabet for URLs"),
            ("e=A=", "byte 1 "),
            ("eB==", "cut off"),
            ("eHé=", "byte 2 "),
            ("data:image/png;base64,eA==", "data URL"),
            ("http://camera/gate.jpg", "nothing is ever fetched"),
            ("HTTPS://camera/gate.jpg", "nothing is ever fetched"),
            ("rtsp://camera/1", "nothing is ever fetched"),
        ] {
            let error = decode(encoded).expect_err(encoded);
            assert!(error.contains(says), "{encoded}: {error}");
        }
    }

    #[test]
    fn only_data_urls_of_images_are_read() {
        for url in [
            "data:image/png;base64,eA==",
            "DATA:Image/JPEG;base64,eA==",
            "data:image/jpg;base64,eA==",
            "data:image/webp;name=a.webp;base64,eA==",
        ] {
            assert_eq!(data_url(url), Ok("eA=="), "{url}");
        }
        for (url, says) in [
            ("https://example.com/a.png", "ever fetched"),
            ("http://a,b", "ever fetched"),
            ("file:///etc/passwd", "ever fetched"),
            ("/a.png", "ever fetched"),
            ("", "ever fetched"),
            ("data:image/png;base64", "comma"),
            ("data:image/png,abc", ";base64"),
            ("data:,abc", ";base64"),
            ("data:image/gif;base64,eA==", "image/webp"),
            ("data:;base64,eA==", "image/webp"),
            ("data:text/html;base64,eA==", "image/webp"),
        ] {
            let error = data_url(url).expect_err(url);
            assert!(error.contains(says), "{url}: {error}");
        }
    }

    proptest! {
        #[test]
        fn files_come_back(file in proptest::collection::vec(any::<u8>(), 1..200), padded in any::<bool>()) {
            let encoded = base64::engine::general_purpose::STANDARD.encode(&file);
            let encoded = if padded { encoded.as_str() } else { encoded.trim_end_matches('=') };
            let decoded = decode(encoded);
            prop_assert_eq!(decoded.as_deref(), Ok(file.as_slice()));
        }

        #[test]
        fn any_text_is_read_or_refused_in_one_line(text in prop_oneof![any::<String>(), "[A-Za-z0-9+/=]{0,12}"]) {
            for read in [decode(&text).map(drop), data_url(&text).map(drop), check_media_type(&text)] {
                if let Err(error) = read {
                    prop_assert!(!error.contains('\n') && error.len() < 300);
                }
            }
        }
    }
}
