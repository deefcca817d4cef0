//! Short quotes of a client's text in error messages.

/// The most characters of an error message about the JSON form, which quotes the payload.
pub(crate) const MAX_MESSAGE_CHARS: usize = 200;
/// The most characters of a name or word that an error message quotes.
const MAX_QUOTED_CHARS: usize = 40;
/// The shortest run of base64 that is taken for a file and left out: longer than any word, shorter than any image.
const LEAST_FILE_CHARS: usize = 64;

/// Returns a text with `…` in place of long base64, which may be an image, up to the first place where it has more than
/// `most` bytes. Of base64 in lines the last one, which is short, is left out too.
pub(crate) fn without_files(text: &[u8], most: usize) -> Vec<u8> {
    let mut kept = Vec::new();
    let mut goes_on = false;
    for run in text.chunk_by(|a, b| is_base64(*a) == is_base64(*b)) {
        if kept.len() > most {
            break;
        }
        if !run.first().is_some_and(|byte| is_base64(*byte)) {
            goes_on &= matches!(run, b"\n" | b"\r\n");
            kept.extend_from_slice(run);
        } else if goes_on || run.len() >= LEAST_FILE_CHARS {
            goes_on = run.len() >= LEAST_FILE_CHARS;
            kept.extend_from_slice("…".as_bytes());
        } else {
            kept.extend_from_slice(run);
        }
    }
    kept
}

/// Whether a byte may stand in base64. Written `\/` in JSON a slash has two characters.
fn is_base64(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"+/=\\-_".contains(&byte)
}

/// Whether base64 in lines breaks at this place of a JSON text: the line before it is long and has nothing else.
pub(crate) fn breaks_base64(text: &[u8], place: usize) -> bool {
    // MIME has 76 characters in a line, PEM 64; some encoders write fewer.
    const LEAST_LINE_CHARS: usize = 32;
    let before = text.get(..place).unwrap_or_default();
    let digits = before.iter().rev().take_while(|byte| is_base64(**byte)).count();
    matches!(text.get(place), Some(b'\r' | b'\n')) && digits >= LEAST_LINE_CHARS
}

/// Returns a message without long base64, cut to [`MAX_MESSAGE_CHARS`].
pub(crate) fn cut(message: &str) -> String {
    // A character has at most four bytes.
    let kept = without_files(message.as_bytes(), 4 * MAX_MESSAGE_CHARS);
    let mut message = String::from_utf8_lossy(&kept).into_owned();
    if let Some((end, _)) = message.char_indices().nth(MAX_MESSAGE_CHARS) {
        message.truncate(end);
        message.push('…');
    }
    message
}

/// Returns a client's text cut to [`MAX_QUOTED_CHARS`], in quotes and with control characters escaped.
pub(crate) fn brief(text: &str) -> String {
    let short: String = text.chars().take(MAX_QUOTED_CHARS).collect();
    if short.len() < text.len() {
        format!("{short:?}…")
    } else {
        format!("{short:?}")
    }
}
