//! Short quotes of a client's text in error messages.

/// The most characters of an error message about the JSON form, which quotes the payload.
pub(crate) const MAX_MESSAGE_CHARS: usize = 200;
/// The most characters of a name or word that an error message quotes.
const MAX_QUOTED_CHARS: usize = 40;

/// Returns a message cut to [`MAX_MESSAGE_CHARS`].
pub(crate) fn cut(mut message: String) -> String {
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
