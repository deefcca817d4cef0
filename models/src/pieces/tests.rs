#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

use proptest::prelude::*;

use super::*;

/// So small that a short text has many pieces.
const SMALL_PIECE: usize = 24;

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn demo() -> Value {
    read(&repository().join("demo/tokenizer.json"))
}

/// A tokenizer's file, as it is used for text of users.
fn read(path: &Path) -> Value {
    let mut json: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    for token in json["added_tokens"].as_array_mut().unwrap() {
        token["special"] = true.into();
    }
    json
}

fn phi() -> Option<Value> {
    let root = std::env::var_os("PHI_EDGE_FIXTURES")
        .map_or_else(|| repository().join("../../shared/fixtures"), PathBuf::from);
    let path = root.join("tokenizer-phi35/tokenizer.json");
    if path.exists() {
        return Some(read(&path));
    }
    println!("SKIPPED: no tokenizer at {}", path.display());
    None
}

/// The demo's vocabulary under another model's pre-tokenizer.
fn with_pattern(pattern: &str) -> Value {
    let mut json = demo();
    json["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = pattern.into();
    json
}

fn like_gpt2() -> Value {
    let mut json = demo();
    json["pre_tokenizer"] = serde_json::json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    json
}

fn plain(json: &Value) -> Tokenizer {
    let mut tokenizer = Tokenizer::from_bytes(serde_json::to_vec(json).unwrap()).unwrap();
    tokenizer.set_encode_special_tokens(true);
    tokenizer
}

fn encoder(json: &Value) -> PieceEncoder {
    PieceEncoder {
        size: SMALL_PIECE,
        ..PieceEncoder::new(json, plain(json)).unwrap()
    }
}

/// Texts that tokenizers are known to be difficult with.
fn text() -> impl Strategy<Value = String> {
    let part = prop_oneof![
        8 => "[a-z]{1,9} [A-Za-z]{1,9}",
        4 => Just(" ".to_owned()),
        1 => "[ \t\r\n]{1,9}",
        1 => "[A-Za-zÄÖÜäöüß']{1,9}",
        1 => "(don't|it's|WE'LL|'s|'S| 's a)",
        1 => "[0-9.,:;-]{1,9}",
        1 => "[▁ a]{1,9}",
        1 => "<0x[0-9A-F]{2}>",
        1 => "[漢字かなカナ한글]{1,5}",
        1 => "[😀👩‍👧🏽é\u{301}\u{200d}]{1,5}",
        1 => "(a{1,40}|={1,40}|\\.{1,40})",
        1 => "\\PC{1,9}",
        1 => any::<char>().prop_map(String::from),
        1 => "(<\\|end\\|>|</s>|<s>|<unk>)",
        1 => "[\\p{Lu}\\p{Ll}\\p{N}\\s]{1,12}",
    ];
    prop::collection::vec(part, 0..60).prop_map(|parts| parts.concat())
}

/// Encodes random texts in pieces and whole.
fn check(json: &Value) {
    let (pieces, whole) = (encoder(json), plain(json));
    let (cases, counted) = (std::cell::Cell::new(0), std::cell::Cell::new(0));
    let config = ProptestConfig {
        cases: 400,
        failure_persistence: None,
        ..ProptestConfig::default()
    };
    proptest!(config, |(text in text())| {
        let expected: Vec<TokenId> = whole
            .encode_fast(text.as_str(), false)
            .unwrap()
            .get_ids()
            .iter()
            .copied()
            .map(TokenId)
            .collect();
        let mut ids = Vec::new();
        prop_assert_eq!(pieces.encode(&text, &mut ids, usize::MAX).unwrap(), Ok(()));
        prop_assert_eq!(&ids, &expected);
        prop_assert!(pieces.at_least(&text) <= expected.len(), "{} of {}", pieces.at_least(&text), expected.len());
        cases.set(cases.get() + 1);
        let mut rest = text.as_str();
        while !rest.is_empty() {
            rest = &rest[pieces.piece(rest)..];
            counted.set(counted.get() + 1);
        }
        // Within any limit it is the same, or said to be more.
        let most = expected.len() / 2;
        ids.clear();
        match pieces.encode(&text, &mut ids, most).unwrap() {
            Ok(()) => prop_assert!(expected.len() <= most),
            Err(TooMany { at_least, exact }) => {
                prop_assert!(most < at_least && at_least <= expected.len());
                prop_assert!(!exact || at_least == expected.len());
            }
        }
    });
    // Pieces there were indeed.
    assert!(
        counted.get() > 2 * cases.get(),
        "{} in {}",
        counted.get(),
        cases.get()
    );
}

#[test]
fn the_demo_models_texts_have_the_same_ids_in_pieces() {
    check(&demo());
}

#[test]
fn phi_models_texts_have_the_same_ids_in_pieces() {
    if let Some(json) = phi() {
        check(&json);
    }
}

#[test]
fn texts_under_other_models_words_have_the_same_ids_in_pieces() {
    for pattern in WORD_PATTERNS {
        check(&with_pattern(pattern));
    }
    check(&like_gpt2());
}

#[test]
fn of_an_unknown_tokenizer_nothing_is_assumed() {
    let mut forms = vec![
        ("normalizer", serde_json::json!({"type": "NFC"})),
        (
            "truncation",
            serde_json::json!({"max_length": 9, "strategy": "LongestFirst", "stride": 0, "direction": "Right"}),
        ),
    ];
    forms.push(("pre_tokenizer", serde_json::json!({"type": "Whitespace"})));
    for (key, value) in forms {
        let mut json = demo();
        json[key] = value;
        assert!(Form::read(&json).is_none(), "{key}");
    }
    // Of words that are not known only the lengths are.
    let form = Form::read(&with_pattern(r"a(?= b)|\s+|\S+")).unwrap();
    assert!(form.cuts.is_none());
    assert_eq!(form.longest, Longest::Bytes(15));
    let Some(mut json) = phi() else { return };
    assert_eq!(Form::read(&json).unwrap().longest, Longest::Characters(16));
    json["model"]["merges"]
        .as_array_mut()
        .unwrap()
        .push("<0x0A> a".into());
    assert!(Form::read(&json).is_none(), "bytes are merged");
}
