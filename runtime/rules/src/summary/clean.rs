//! The cleaning of a model's text.

/// The most characters between `<|` and `|>` of a control token's spelling.
const MAX_CONTROL_TOKEN_CHARS: usize = 40;
const SENTENCE_TOKENS: [&str; 3] = ["<s>", "</s>", "<unk>"];

/// The text without control characters (but newline and tab), characters that change the direction of text, spellings of
/// control tokens, and surrounding white space. Line ends become newlines.
pub fn clean(text: &str) -> String {
    let mut clean: String = text
        .replace("\r\n", "\n")
        .chars()
        .map(|c| if c == '\r' { '\n' } else { c })
        .filter(|&c| matches!(c, '\n' | '\t') || !(c.is_control() || turns(c)))
        .collect();
    // What is left after a spelling is taken out may spell another one; each round makes the text shorter.
    while let Some((start, end)) = control_token(&clean) {
        clean.replace_range(start..end, "");
    }
    clean.trim().to_owned()
}

/// Marks, embeddings, overrides and isolates of Unicode's bidirectional algorithm, and the byte order mark.
fn turns(c: char) -> bool {
    matches!(c, '\u{61C}' | '\u{200E}' | '\u{200F}' | '\u{202A}'..='\u{202E}' | '\u{2066}'..='\u{2069}' | '\u{FEFF}')
}

/// The range of the first spelling of a control token.
fn control_token(text: &str) -> Option<(usize, usize)> {
    text.match_indices('<').find_map(|(start, _)| {
        let rest = &text[start..];
        if let Some(token) = SENTENCE_TOKENS.iter().find(|token| rest.starts_with(**token)) {
            return Some((start, start + token.len()));
        }
        let name = rest.strip_prefix("<|")?;
        let end = name.find(|c: char| !c.is_ascii_alphanumeric() && c != '_')?;
        let is_one = (1..=MAX_CONTROL_TOKEN_CHARS).contains(&end) && name[end..].starts_with("|>");
        is_one.then_some((start, start + 2 + end + 2))
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn outputs() {
        let check = |text: &str, expected: &str| assert_eq!(clean(text), expected, "{text:?}");
        check("  All is well.\n", "All is well.");
        check("a\tb\nc\r\nd\re", "a\tb\nc\nd\ne");
        check("a\u{0}\u{7}\u{1b}[31mb\u{9b}", "a[31mb");
        check("1 \u{202e}2\u{202c}\u{2066}3\u{2069}\u{feff}", "1 23");
        check("done<|end|>", "done");
        check("<|assistant|>\nyes</s>", "yes");
        check("<|<|end|>end|>x", "x");
        check("a <| b |> c < d", "a <| b |> c < d");
        check("x <s>y</s> <unk>", "x y");
        check("Größe: 5 µm – „gut“ 👩‍🔧", "Größe: 5 µm – „gut“ 👩‍🔧");
        check("<|>", "<|>");
    }

    proptest! {
        #[test]
        fn clean_text_stays(text in "(\\PC|\n|\u{1b}|\u{202e}|<\\||\\|>|end|<s>|<){0,30}") {
            let once = clean(&text);
            prop_assert_eq!(clean(&once), once);
        }
    }
}
