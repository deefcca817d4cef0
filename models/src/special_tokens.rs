//! The tokenizer's added tokens: their spellings in text, and protection of users' text from them.

use phi_edge_engine::TokenId;
use serde_json::Value;

/// One added token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct AddedToken {
    pub(crate) id: TokenId,
    pub(crate) spelling: String,
    /// Whether whitespace before it belongs to it.
    pub(crate) eats_left: bool,
    /// Whether whitespace after it belongs to it.
    pub(crate) eats_right: bool,
}

/// All added tokens of a tokenizer.
#[derive(Debug, Clone, Default)]
pub(crate) struct SpecialTokens {
    tokens: Vec<AddedToken>,
    /// The characters that spellings begin with.
    firsts: Vec<char>,
}

/// A part of a text.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum TextPart<'a> {
    /// Plain text, never empty.
    Text(&'a str),
    /// An added token.
    Token(TokenId),
}

/// Private-use characters that have no meaning in text; the first that a conversation lacks marks its own spellings
/// of special tokens.
const MARKS: std::ops::RangeInclusive<char> = '\u{F8A0}'..='\u{F8FF}';

impl SpecialTokens {
    /// Reads `added_tokens` of a `tokenizer.json`.
    pub(crate) fn read(tokenizer: &Value) -> Result<Self, String> {
        let Some(list) = tokenizer.get("added_tokens").filter(|list| !list.is_null()) else {
            return Ok(Self::default());
        };
        let list = list.as_array().ok_or("added_tokens must be a list")?;
        let mut tokens = Vec::with_capacity(list.len());
        for token in list {
            let id = token["id"].as_u64().and_then(|id| u32::try_from(id).ok());
            let (Some(id), Some(spelling)) = (id, token["content"].as_str()) else {
                return Err(format!("an entry of added_tokens has no id or content: {token}"));
            };
            if spelling.is_empty() {
                return Err(format!("added token {id} has an empty content"));
            }
            let flag = |key: &str| token[key].as_bool().unwrap_or(false);
            tokens.push(AddedToken {
                id: TokenId(id),
                spelling: spelling.to_owned(),
                eats_left: flag("lstrip"),
                eats_right: flag("rstrip"),
            });
        }
        // Of two spellings that begin alike the longer one is meant, as the tokenizer has it.
        tokens.sort_by_key(|token| std::cmp::Reverse(token.spelling.len()));
        let mut firsts: Vec<char> = tokens
            .iter()
            .filter_map(|token| token.spelling.chars().next())
            .collect();
        firsts.sort_unstable();
        firsts.dedup();
        Ok(Self { tokens, firsts })
    }

    /// The id of a token by its spelling.
    pub(crate) fn id(&self, spelling: &str) -> Option<TokenId> {
        self.tokens
            .iter()
            .find(|token| token.spelling == spelling)
            .map(|token| token.id)
    }

    /// Whether `id` is an added token.
    pub(crate) fn is_one(&self, id: TokenId) -> bool {
        self.tokens.iter().any(|token| token.id == id)
    }

    pub(crate) fn len(&self) -> usize {
        self.tokens.len()
    }

    /// Splits a text at the spellings of added tokens, with the whitespace that belongs to each.
    pub(crate) fn split<'a>(&self, text: &'a str) -> Vec<TextPart<'a>> {
        let mut parts = Vec::new();
        let (mut start, mut at) = (0, 0);
        while let Some(rest) = text.get(at..).filter(|rest| !rest.is_empty()) {
            let Some(token) = self.at_start_of(rest) else {
                at += rest.chars().next().map_or(1, char::len_utf8);
                continue;
            };
            let before = &text[start..at];
            let before = if token.eats_left {
                before.trim_end()
            } else {
                before
            };
            if !before.is_empty() {
                parts.push(TextPart::Text(before));
            }
            parts.push(TextPart::Token(token.id));
            at += token.spelling.len();
            if token.eats_right {
                at = text.len() - text[at..].trim_start().len();
            }
            start = at;
        }
        if start < text.len() {
            parts.push(TextPart::Text(&text[start..]));
        }
        parts
    }

    /// Breaks every spelling of an added token in `text` by `mark`, so that [`SpecialTokens::split`] does
    /// not see it. Taking the mark out again restores the text.
    pub(crate) fn disarm(&self, text: &str, mark: char) -> String {
        let mut disarmed = String::with_capacity(text.len());
        for (at, character) in text.char_indices() {
            disarmed.push(character);
            if self.at_start_of(&text[at..]).is_some() {
                disarmed.push(mark);
            }
        }
        disarmed
    }

    fn at_start_of(&self, text: &str) -> Option<&AddedToken> {
        // Nearly every character of a long text begins none.
        let first = text.chars().next()?;
        if !self.firsts.contains(&first) {
            return None;
        }
        self.tokens
            .iter()
            .find(|token| text.starts_with(token.spelling.as_str()))
    }
}

/// A character that none of the texts holds.
pub(crate) fn unused_mark<'a>(texts: &(impl Iterator<Item = &'a str> + Clone)) -> Option<char> {
    MARKS
        .into_iter()
        .find(|mark| texts.clone().all(|text| !text.contains(*mark)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn tokens() -> SpecialTokens {
        SpecialTokens::read(&json!({"added_tokens": [
            {"id": 1, "content": "<s>"}, {"id": 2, "content": "</s>", "rstrip": true},
            {"id": 3, "content": "<|end|>", "rstrip": true}, {"id": 4, "content": "<|end|>>", "lstrip": true},
        ]}))
        .unwrap()
    }

    #[test]
    fn splits_at_the_longest_spelling_and_eats_whitespace() {
        let tokens = tokens();
        let token = |id| TextPart::Token(TokenId(id));
        assert_eq!(
            tokens.split("a <s> b"),
            [TextPart::Text("a "), token(1), TextPart::Text(" b")]
        );
        assert_eq!(
            tokens.split("a<|end|>\n b"),
            [TextPart::Text("a"), token(3), TextPart::Text("b")]
        );
        assert_eq!(
            tokens.split("a \n<|end|>> b"),
            [TextPart::Text("a"), token(4), TextPart::Text(" b")]
        );
        assert_eq!(tokens.split("<|end|> \n<s>"), [token(3), token(1)]);
        assert_eq!(tokens.split(""), []);
        assert_eq!(tokens.split("ü<"), [TextPart::Text("ü<")]);
    }

    proptest! {
        #[test]
        fn disarmed_text_splits_into_itself(text in "(<s>|</s>|<\\|end\\|>|>|<|[a-z ü]|\n){0,20}") {
            let tokens = tokens();
            let mark = unused_mark(&std::iter::once(text.as_str())).unwrap();
            let disarmed = tokens.disarm(&text, mark);
            prop_assert!(tokens.split(&disarmed).iter().all(|part| matches!(part, TextPart::Text(_))));
            prop_assert_eq!(disarmed.replace(mark, ""), text);
        }
    }
}
