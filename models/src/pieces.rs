//! Encoding in pieces: a lower bound of a text's tokens, and the places where it may be cut without changing its ids.
//!
//! The tokenizer's library encodes a text as a whole, in some hundred bytes of memory for each byte of it, without a
//! limit. Here a text is measured first, and encoded in pieces up to a limit. Both rest on what can be proven from
//! the tokenizer's file; nothing is assumed of a file with unknown parts, and its texts are encoded as a whole.
//!
//! Byte pair encoding only ever joins neighbours, and the result is a token in the end: two characters that are
//! neighbours in no token are never joined, and the ids on the two sides of that place do not depend on each other.
//! Where the text is cut into words before (a pre-tokenizer), a place counts only if the words are the same on both
//! sides.

use std::collections::{HashMap, HashSet};

use phi_edge_engine::TokenId;
use serde_json::Value;
use tokenizers::Tokenizer;

use crate::error::ModelError;

/// The bytes of text after which a piece ends at the next place where it may. A piece's memory is a hundred times as
/// much, and a call's overhead is small against the time that so much takes.
const PIECE_BYTES: usize = 16 << 10;

/// The library's memory for each byte of a piece, in bytes. Measured on 1 MiB of text: 270 with a byte-level
/// pre-tokenizer, which makes a string with alignments of each word, 180 for prose, fewer without one. The time is
/// linear.
pub(crate) const MEMORY_PER_BYTE: usize = 300;

/// Patterns of pre-tokenizers that make separate words of a letter and of a space with a letter behind it, whatever stands
/// around them: the demo model's, Llama 3's and Qwen's. None looks behind, and none looks ahead from a letter.
const WORD_PATTERNS: [&str; 3] = [
    r"\d|[A-Za-zÄÖÜäöüß]+|\s|[^\sA-Za-zÄÖÜäöüß\d]",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
];

/// The error of a text with too many tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TooMany {
    /// A lower bound of its tokens.
    pub(crate) at_least: usize,
    /// Whether the bound is the exact number.
    pub(crate) exact: bool,
}

/// A tokenizer for text of users that measures and encodes in pieces.
#[derive(Debug)]
pub(crate) struct PieceEncoder {
    first: Tokenizer,
    /// The tokenizer of the pieces after the first, where a text's beginning is normalised differently.
    rest: Option<Tokenizer>,
    longest: Option<Longest>,
    cuts: Option<Cuts>,
    /// As [`PIECE_BYTES`].
    size: usize,
}

/// The unit and the most of text that one token covers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Longest {
    Characters(usize),
    Bytes(usize),
}

/// The places where a text may be cut.
#[derive(Debug)]
enum Cuts {
    /// Between characters that are neighbours in no token, as the tokenizer sees them.
    Pairs {
        /// The characters that normalisation makes of a character.
        mapped: HashMap<char, char>,
        /// Neighbours in a token.
        joined: HashSet<(char, char)>,
    },
    /// Before a space between two ASCII letters.
    Words,
}

impl PieceEncoder {
    /// `json` is the tokenizer's file, of which `tokenizer` is made.
    pub(crate) fn new(json: &Value, tokenizer: Tokenizer) -> Result<Self, String> {
        let mut first = tokenizer;
        let form = Form::read(json);
        // The library keeps up to 10,000 short texts with 8 KiB each: worth it for words, not for prompts.
        if json["pre_tokenizer"].is_null() {
            let mut model = first.get_model().clone();
            model.resize_cache(0);
            first.with_model(model);
        }
        let Some(form) = form else {
            return Ok(Self {
                first,
                rest: None,
                longest: None,
                cuts: None,
                size: PIECE_BYTES,
            });
        };
        let rest = match &form.normalizer_of_rest {
            None => None,
            Some(normalizer) => {
                let mut json = json.clone();
                json["normalizer"] = normalizer.clone();
                let bytes = serde_json::to_vec(&json).map_err(|error| error.to_string())?;
                let mut rest = Tokenizer::from_bytes(bytes).map_err(|error| error.to_string())?;
                rest.set_encode_special_tokens(first.get_encode_special_tokens());
                let mut model = rest.get_model().clone();
                model.resize_cache(0);
                rest.with_model(model);
                Some(rest)
            }
        };
        Ok(Self {
            first,
            rest,
            longest: Some(form.longest),
            cuts: form.cuts,
            size: PIECE_BYTES,
        })
    }

    /// A lower bound of the text's tokens.
    pub(crate) fn at_least(&self, text: &str) -> usize {
        match self.longest {
            Some(Longest::Characters(most)) => text.chars().count().div_ceil(most),
            Some(Longest::Bytes(most)) => text.len().div_ceil(most),
            None => 0,
        }
    }

    /// The bytes of the text's largest piece.
    pub(crate) fn largest_piece(&self, text: &str) -> usize {
        let (mut rest, mut largest) = (text, 0);
        while !rest.is_empty() {
            let piece = self.piece(rest);
            largest = largest.max(piece);
            rest = rest.get(piece..).unwrap_or_default();
        }
        largest
    }

    /// Appends the ids of a text to `ids`, as long as there are not more than `most` of them.
    pub(crate) fn encode(
        &self,
        text: &str,
        ids: &mut Vec<TokenId>,
        most: usize,
    ) -> Result<Result<(), TooMany>, ModelError> {
        let (mut rest, mut tokenizer) = (text, &self.first);
        while !rest.is_empty() {
            let (piece, behind) = rest.split_at(self.piece(rest));
            let encoding = tokenizer
                .encode_fast(piece, false)
                .map_err(|error| ModelError::Encode(error.to_string()))?;
            ids.extend(encoding.get_ids().iter().copied().map(TokenId));
            if ids.len() > most {
                return Ok(Err(TooMany {
                    at_least: ids.len() + self.at_least(behind),
                    exact: behind.is_empty(),
                }));
            }
            rest = behind;
            tokenizer = self.rest.as_ref().unwrap_or(&self.first);
        }
        Ok(Ok(()))
    }

    /// The end of each token of a text, in bytes and on a character boundary, in rising order.
    pub(crate) fn token_ends(&self, text: &str) -> Result<Vec<usize>, ModelError> {
        let mut ends = Vec::new();
        let (mut rest, mut tokenizer) = (text, &self.first);
        let mut last = 0;
        while !rest.is_empty() {
            let before = text.len() - rest.len();
            let (piece, behind) = rest.split_at(self.piece(rest));
            let encoding = tokenizer
                .encode(piece, false)
                .map_err(|error| ModelError::Encode(error.to_string()))?;
            for (_, end) in encoding.get_offsets() {
                last = last.max(before + piece.floor_char_boundary(*end));
                ends.push(last);
            }
            rest = behind;
            tokenizer = self.rest.as_ref().unwrap_or(&self.first);
        }
        Ok(ends)
    }

    /// The end of a text's first piece, in bytes.
    fn piece(&self, text: &str) -> usize {
        let Some(cuts) = self.cuts.as_ref().filter(|_| text.len() > self.size) else {
            return text.len();
        };
        let from = text.floor_char_boundary(self.size);
        let Some(mut before) = text.get(..from).and_then(|text| text.chars().next_back()) else {
            return text.len();
        };
        let mut following = text.get(from..).unwrap_or_default().char_indices();
        while let Some((at, character)) = following.next() {
            if cuts.allow(before, character, following.as_str()) {
                return from + at;
            }
            before = character;
        }
        text.len()
    }
}

impl Cuts {
    fn allow(&self, before: char, after: char, following: &str) -> bool {
        match self {
            Self::Pairs { mapped, joined } => {
                let seen = |character| *mapped.get(&character).unwrap_or(&character);
                !joined.contains(&(seen(before), seen(after)))
            }
            Self::Words => {
                before.is_ascii_alphabetic()
                    && after == ' '
                    && following.starts_with(|next: char| next.is_ascii_alphabetic())
            }
        }
    }
}

/// The facts of a tokenizer's file, where all of it is known.
struct Form {
    longest: Longest,
    cuts: Option<Cuts>,
    /// The normalizer without its change of a text's beginning, if it makes one.
    normalizer_of_rest: Option<Value>,
}

impl Form {
    fn read(json: &Value) -> Option<Self> {
        let model = &json["model"];
        let absent = |key: &str| model[key].is_null() || model[key] == "";
        let plain = model["type"] == "BPE"
            && (model["dropout"].is_null() || model["dropout"] == 0.0)
            && absent("continuing_subword_prefix")
            && absent("end_of_word_suffix")
            && ["truncation", "padding"].iter().all(|key| json[key].is_null());
        let vocabulary = model["vocab"].as_object().filter(|_| plain)?;
        if json["pre_tokenizer"].is_null() {
            Self::of_characters(json, vocabulary)
        } else {
            Self::of_bytes(json, vocabulary)
        }
    }

    /// A tokenizer of whole texts that spells unknown characters in bytes, as Llama's and Phi-3's.
    fn of_characters(json: &Value, vocabulary: &serde_json::Map<String, Value>) -> Option<Self> {
        let model = &json["model"];
        let bytes: HashSet<String> = (0..=u8::MAX).map(|byte| format!("<{byte:#04X}>")).collect();
        let complete = model["byte_fallback"] == true
            && model["ignore_merges"] != true
            && bytes.iter().all(|byte| vocabulary.contains_key(byte));
        if !complete {
            return None;
        }
        let (mapped, normalizer_of_rest) = normalizer(&json["normalizer"])?;
        // What is spelled in bytes stays so: no merge takes one.
        let merges = model["merges"].as_array()?;
        let of_bytes = |merge: &Value| match merge {
            Value::String(pair) => pair.split(' ').any(|part| bytes.contains(part)),
            Value::Array(pair) => pair
                .iter()
                .any(|part| part.as_str().is_none_or(|part| bytes.contains(part))),
            _ => true,
        };
        if merges.iter().any(of_bytes) {
            return None;
        }
        let tokens = || vocabulary.keys().filter(|token| !bytes.contains(*token));
        let longest = tokens().map(|token| token.chars().count()).max()?;
        let joined = tokens()
            .flat_map(|token| token.chars().zip(token.chars().skip(1)))
            .collect();
        Some(Self {
            longest: Longest::Characters(longest.max(1)),
            cuts: Some(Cuts::Pairs { mapped, joined }),
            normalizer_of_rest,
        })
    }

    /// A tokenizer of words in bytes, as GPT-2's.
    fn of_bytes(json: &Value, vocabulary: &serde_json::Map<String, Value>) -> Option<Self> {
        if !json["normalizer"].is_null() {
            return None;
        }
        let steps = match json["pre_tokenizer"]["type"].as_str()? {
            "Sequence" => json["pre_tokenizer"]["pretokenizers"].as_array()?.as_slice(),
            _ => std::slice::from_ref(&json["pre_tokenizer"]),
        };
        let (last, splits) = steps.split_last()?;
        // Nothing of a text is lost, and each character is as many as it has bytes.
        let keeps = |step: &Value| {
            step["type"] == "Split" && step["behavior"] == "Isolated" && step["invert"] != true
        };
        let spelled = (0..=u8::MAX).all(|byte| vocabulary.contains_key(&byte_level(byte).to_string()));
        let whole = last["type"] == "ByteLevel"
            && last["add_prefix_space"] == false
            && splits.iter().all(keeps)
            && spelled;
        if !whole {
            return None;
        }
        let words = match splits {
            // Its own pattern is GPT-2's, which is one of those.
            [] => last["use_regex"] != false,
            [split] => {
                let pattern = split["pattern"]["Regex"].as_str();
                last["use_regex"] == false && pattern.is_some_and(|known| WORD_PATTERNS.contains(&known))
            }
            _ => false,
        };
        let longest = vocabulary.keys().map(|token| token.chars().count()).max()?;
        Some(Self {
            longest: Longest::Bytes(longest.max(1)),
            cuts: words.then_some(Cuts::Words),
            normalizer_of_rest: None,
        })
    }
}

/// Returns the normalizer's change of single characters, and the same without what it puts before a text, if it does.
/// `None`: it does something else.
fn normalizer(json: &Value) -> Option<(HashMap<char, char>, Option<Value>)> {
    let steps = match json["type"].as_str() {
        None if json.is_null() => return Some((HashMap::new(), None)),
        Some("Sequence") => json["normalizers"].as_array()?.as_slice(),
        _ => std::slice::from_ref(json),
    };
    let mut mapped = HashMap::new();
    let mut rest = Vec::new();
    for step in steps {
        match step["type"].as_str()? {
            "Prepend" => continue,
            "Replace" => {
                let from = single(step["pattern"]["String"].as_str()?)?;
                let to = single(step["content"].as_str()?)?;
                // What a step makes of a character, the next one takes.
                for seen in mapped.values_mut().filter(|seen| **seen == from) {
                    *seen = to;
                }
                mapped.entry(from).or_insert(to);
            }
            _ => return None,
        }
        rest.push(step.clone());
    }
    let changed = rest.len() < steps.len();
    let of_rest = changed.then(|| match rest.len() {
        0 => Value::Null,
        _ => serde_json::json!({"type": "Sequence", "normalizers": rest}),
    });
    Some((mapped, of_rest))
}

fn single(text: &str) -> Option<char> {
    let mut characters = text.chars();
    characters.next().filter(|_| characters.next().is_none())
}

/// The character that a byte-level tokenizer writes for a byte (GPT-2's `bytes_to_unicode`).
fn byte_level(byte: u8) -> char {
    let printable = |byte: u8| matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    if printable(byte) {
        return char::from(byte);
    }
    let before = (0..byte).filter(|byte| !printable(*byte)).count();
    u32::try_from(before)
        .ok()
        .and_then(|n| char::from_u32(256 + n))
        .unwrap_or(char::REPLACEMENT_CHARACTER)
}

#[cfg(test)]
mod tests;
