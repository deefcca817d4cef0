//! What messages quote of a client's text: little of it, and in one line.

/// The most characters of a message about a fault of form: it quotes the payload.
pub(crate) const FAULT: usize = 200;

/// Returns a message without what is beyond [`FAULT`].
pub(crate) fn cut(mut message: String) -> String {
    if let Some((end, _)) = message.char_indices().nth(FAULT) {
        message.truncate(end);
        message.push('…');
    }
    message
}

/// Returns a client's text, short enough for a message.
pub(crate) fn brief(text: &str) -> String {
    let short: String = text.chars().take(40).collect();
    if short.len() < text.len() {
        format!("{short:?}…")
    } else {
        format!("{short:?}")
    }
}
