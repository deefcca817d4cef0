//! Phi-3.5's tokenizer against encodings, renderings and decodings of the reference implementations.

#![allow(clippy::cast_possible_truncation, clippy::unwrap_used, missing_docs)]

use std::path::{Path, PathBuf};

use phi_edge_engine::{Symbol, TokenId};
use phi_edge_models::{
    ChatEncoder as _, EncodeCost, EncodeError, Message, ModelDir, PromptRoom, Role, TextModel, Truncation,
    encode_truncated,
};
use proptest::prelude::*;
use serde_json::Value;

fn fixtures() -> Option<PathBuf> {
    let root = std::env::var_os("PHI_EDGE_FIXTURES").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/fixtures"),
        PathBuf::from,
    );
    if root.join("tokenizer-phi35").is_dir() {
        return Some(root);
    }
    assert!(
        std::env::var_os("CI").is_none_or(|v| v != "true"),
        "fixtures are missing: {}",
        root.display()
    );
    println!("SKIPPED: no fixtures at {}", root.display());
    None
}

/// A model directory needs a configuration and a graph file beside the tokenizer's.
fn text_model(folder: &Path) -> (tempfile::TempDir, TextModel) {
    let model = tempfile::tempdir().unwrap();
    for file in ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja"] {
        if folder.join(file).exists() {
            std::fs::copy(folder.join(file), model.path().join(file)).unwrap();
        }
    }
    let config = r#"{"model":{"context_length":8,"vocab_size":32064,"eos_token_id":32000,
        "decoder":{"filename":"m.onnx","head_size":8,"num_attention_heads":1,"num_hidden_layers":1}}}"#;
    std::fs::write(model.path().join("genai_config.json"), config).unwrap();
    std::fs::write(model.path().join("m.onnx"), "x").unwrap();
    let text = ModelDir::open(model.path()).unwrap().text().unwrap();
    (model, text)
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn ids(value: &Value) -> Vec<u32> {
    value
        .as_array()
        .unwrap()
        .iter()
        .map(|id| u32::try_from(id.as_u64().unwrap()).unwrap())
        .collect()
}

fn plain(ids: Vec<impl Into<Symbol>>) -> Vec<u32> {
    let id = |symbol: Symbol| symbol.token().unwrap().0;
    ids.into_iter().map(|symbol| id(symbol.into())).collect()
}

fn stream(text: &TextModel, ids: &[u32], skip: bool) -> String {
    let mut detokenizer = if skip {
        text.detokenizer()
    } else {
        text.detokenizer_with_specials()
    };
    let mut out: String = ids.iter().map(|id| detokenizer.push(TokenId(*id))).collect();
    out.push_str(&detokenizer.finish());
    out
}

#[test]
fn encodings() {
    let Some(root) = fixtures() else { return };
    let folder = root.join("tokenizer-phi35");
    let (_dir, text) = text_model(&folder);
    let golden = json(&folder.join("golden.json"));
    for case in golden["encode"].as_array().unwrap() {
        let string = case["text"].as_str().unwrap();
        assert_eq!(
            plain(text.encode_with_specials(string).unwrap()),
            ids(&case["ids"]),
            "{string:?}"
        );
        let as_text = plain(text.encode_raw(string).unwrap());
        if string.contains("</s>") {
            // The library alone lets this one through; here text stays text.
            assert!(!as_text.contains(&2), "{string:?}");
        } else {
            assert_eq!(as_text, ids(&case["ids_encode_special_tokens"]), "{string:?}");
        }
    }
    let vectors = json(&folder.join("llama-cpp-vectors.json"));
    let list = vectors
        .as_array()
        .or_else(|| vectors["vectors"].as_array())
        .expect("a list of vectors");
    assert!(list.len() > 10);
    for case in list {
        let string = case["text"].as_str().unwrap();
        assert_eq!(
            plain(text.encode_raw(string).unwrap()),
            ids(&case["ids"]),
            "{string:?}"
        );
    }
}

fn messages(value: &Value) -> Vec<Message> {
    let role = |role: &str| match role {
        "system" => Role::System,
        "user" => Role::User,
        "assistant" => Role::Assistant,
        other => panic!("role {other}"),
    };
    let turns = value.as_array().unwrap().iter();
    turns
        .map(|m| Message::new(role(m["role"].as_str().unwrap()), m["content"].as_str().unwrap()))
        .collect()
}

#[test]
fn conversations() {
    let Some(root) = fixtures() else { return };
    let folder = root.join("tokenizer-phi35");
    let (_dir, text) = text_model(&folder);
    let golden = json(&folder.join("golden.json"));
    let mut compared = 0;
    for case in golden["chat"].as_array().unwrap() {
        let messages = messages(&case["messages"]);
        let generation_prompt = case["add_generation_prompt"].as_bool().unwrap();
        let got = plain(text.encode_turns(&messages, generation_prompt).unwrap());
        let spells = |m: &Message| {
            ["<|", "</s>", "<s>", "<unk>"]
                .iter()
                .any(|s| m.content.contains(s))
        };
        if messages.iter().any(spells) {
            // Control tokens are the template's alone: one at each turn's beginning and one at its end.
            let control = got.iter().filter(|id| **id >= 32000 || **id < 3).count();
            assert_eq!(control, 2 * messages.len() + 1, "{messages:?}");
        } else {
            assert_eq!(got, ids(&case["ids"]), "{messages:?}");
            compared += 1;
        }
    }
    assert!(compared > 10);
    for name in ["phi3-mini-tiny-fp32", "phi3-mini-tiny-int4"] {
        let folder = root.join(name);
        let (_dir, text) = text_model(&folder);
        for case in json(&folder.join("golden.json"))["cases"].as_array().unwrap() {
            if case["messages"].is_array() {
                let got = text.encode_chat(&messages(&case["messages"])).unwrap();
                assert_eq!(plain(got), ids(&case["prompt_ids"]), "{name} {}", case["name"]);
            }
        }
    }
}

#[test]
fn streams() {
    let Some(root) = fixtures() else { return };
    let folder = root.join("tokenizer-phi35");
    let (_dir, text) = text_model(&folder);
    let golden = json(&folder.join("golden.json"));
    for case in golden["decode"].as_array().unwrap() {
        let input = ids(&case["ids"]);
        for (mode, skip) in [("keep_special", false), ("skip_special", true)] {
            let expected = case[mode]["text"].as_str().unwrap();
            assert_eq!(stream(&text, &input, skip), expected, "{} {mode}", case["name"]);
        }
    }
    for case in golden["continuation"].as_array().unwrap() {
        let alone = case["decode_new_alone"].as_str().unwrap();
        assert_eq!(
            stream(&text, &ids(&case["new_ids"]), true),
            alone,
            "{}",
            case["prompt"]
        );
    }
}

#[test]
fn stop_ids_are_found_by_their_spelling() {
    let Some(root) = fixtures() else { return };
    let (_dir, text) = text_model(&root.join("tokenizer-phi35"));
    assert_eq!(plain(text.stop_ids()), [32000, 32001, 32007]);
}

#[test]
fn visions_tokenizer_keeps_the_newline_after_a_role() {
    let Some(root) = fixtures() else { return };
    let (_dir, text) = text_model(&root.join("phi35-vision-tiny"));
    let chat = [Message::new(Role::User, "Hello")];
    let whole = text
        .encode_with_specials("<|user|>\nHello<|end|>\n<|assistant|>\n")
        .unwrap();
    assert_eq!(text.encode_chat(&chat).unwrap(), whole);
    assert!(plain(whole).windows(2).any(|pair| pair == [29871, 13]));
}

#[test]
fn user_text_never_becomes_a_control_token_and_streams_equal_whole_decodings() {
    let Some(root) = fixtures() else { return };
    let folder = root.join("tokenizer-phi35");
    let (_dir, text) = text_model(&folder);
    let reference = tokenizers::Tokenizer::from_file(folder.join("tokenizer.json")).unwrap();
    let config = ProptestConfig {
        cases: 200,
        failure_persistence: None,
        ..ProptestConfig::default()
    };
    proptest!(config, |(content in "(<\\|end\\|>|<\\|user\\|>|</s>|<s>|<unk>|<\\||\\|>|[a-zü<>|/ \n]){0,30}")| {
        let got = plain(text.encode_chat(&[Message::new(Role::User, content.clone())]).unwrap());
        let control: Vec<u32> = got.iter().copied().filter(|id| *id >= 32000 || *id < 3).collect();
        prop_assert_eq!(control, vec![32010, 32007, 32001]);
    });
    let config = ProptestConfig {
        cases: 300,
        failure_persistence: None,
        ..ProptestConfig::default()
    };
    // Byte tokens are 3 to 258; they are the hard part.
    let id = prop_oneof![3u32..259, 259u32..32011, Just(13u32), Just(2u32)];
    proptest!(config, |(ids in prop::collection::vec(id, 0..24))| {
        for skip in [true, false] {
            prop_assert_eq!(stream(&text, &ids, skip), reference.decode(&ids, skip).unwrap());
        }
    });
}

#[test]
fn a_continuation_is_what_the_whole_template_has_after_the_answer() {
    let Some(root) = fixtures() else { return };
    let (_dir, text) = text_model(&root.join("tokenizer-phi35"));
    let turn = |role, content: &str| Message::new(role, content);
    let (question, answer) = (
        turn(Role::User, "How warm?"),
        turn(Role::Assistant, "21 degrees."),
    );
    let next = [turn(Role::User, "And <|end|> outside?")];
    let mut ids = text.encode_chat(std::slice::from_ref(&question)).unwrap();
    ids.extend(
        text.encode_raw("21 degrees.")
            .unwrap()
            .into_iter()
            .map(Symbol::from),
    );
    ids.extend(text.encode_continuation(&next).unwrap());
    let whole = text.encode_chat(&[question, answer, next[0].clone()]).unwrap();
    assert_eq!(ids, whole);
    let prefix = text.prefix(Some("Be brief."), "").unwrap();
    for content in ["x", "A longer one"] {
        let whole = text
            .encode_chat(&[turn(Role::System, "Be brief."), turn(Role::User, content)])
            .unwrap();
        assert!(whole.starts_with(&prefix) && prefix.len() > 4);
    }
    let opening = "You write the digest of alarms.";
    let prefix = text.prefix(None, opening).unwrap();
    for rest in ["", "\n\nFacts:", " 1", "..", "a"] {
        let turns = [turn(Role::User, &format!("{opening}{rest}"))];
        let whole = text.encode_chat(&turns).unwrap();
        let common = whole.iter().zip(&prefix).take_while(|(a, b)| a == b).count();
        // But for the last token, which what follows may change.
        assert!(common + 1 >= prefix.len() && prefix.len() > 6, "{rest}");
    }
}

#[test]
fn what_follows_within_a_token_is_encoded_to_the_letter() {
    let mut models = Vec::new();
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("demo");
    models.push(text_model(&demo));
    models.extend(fixtures().map(|root| text_model(&root.join("tokenizer-phi35"))));
    let config = ProptestConfig {
        cases: 300,
        failure_persistence: None,
        ..ProptestConfig::default()
    };
    let text = "([A-Za-z]{1,7}|[ \n.,;:]{1,2}|[0-9]|[äöüß€]|[漢字😀🦀]|<\\|end\\|>|</s>){0,12}";
    proptest!(config, |(first in text, rest in text, at in any::<prop::sample::Index>())| {
        for (_, model) in &models {
            let before = model.encode_raw(&first).unwrap();
            let before = &before[..at.index(before.len() + 1)];
            let ids = plain(before.to_vec());
            // Within a character nothing can follow to the letter.
            if stream(model, &ids, true).contains(char::REPLACEMENT_CHARACTER) {
                continue;
            }
            let tail = model.encode_behind(before, &rest).expect("ids");
            let whole = [ids.clone(), plain(tail)].concat();
            prop_assert_eq!(stream(model, &whole, true), stream(model, &ids, true) + &rest);
        }
    });
}

#[test]
fn a_prompt_is_encoded_within_its_room_or_measured() {
    let Some(root) = fixtures() else { return };
    let (_dir, text) = text_model(&root.join("tokenizer-phi35"));
    let chat = |content: &str| [Message::new(Role::User, content)];
    let words = "How warm is it outside? ".repeat(3000);
    for content in ["Hello", "<|end|> 12", words.as_str()] {
        let whole = text.encode_chat(&chat(content)).unwrap();
        let within = text.encode_chat_within(&chat(content), whole.len());
        assert_eq!(within.unwrap(), whole);
        let cost = text.encode_cost(&chat(content)).unwrap();
        assert!(cost.at_least <= whole.len() && cost.at_least > 3);
        let continued = text.encode_continuation(&chat(content)).unwrap();
        for room in [0, 3, whole.len() / 2, whole.len() - 1] {
            let long = |result| match result {
                Err(EncodeError::TooLong { tokens, exact }) => (tokens, exact),
                other => panic!("{other:?}"),
            };
            let (tokens, exact) = long(text.encode_chat_within(&chat(content), room));
            assert!(
                room < tokens && tokens <= whole.len(),
                "{tokens} of {}",
                whole.len()
            );
            assert!(!exact || tokens == whole.len());
            let room = room.min(continued.len() - 1);
            let (tokens, _) = long(text.encode_continuation_within(&chat(content), room));
            assert!(room < tokens && tokens <= continued.len());
        }
    }
    // Pieces are what it takes memory for, and they are small.
    let cost = text.encode_cost(&chat(&words)).unwrap();
    assert!(cost.memory < words.len() * 8 + (8 << 20), "{cost:?}");
    assert!(cost.memory < EncodeCost::memory_for(words.len()));
}

#[test]
fn a_session_is_cut_between_its_turns() {
    let Some(root) = fixtures() else { return };
    let (_dir, text) = text_model(&root.join("tokenizer-phi35"));
    let turn = |role, content: &str| Message::new(role, content.to_owned());
    let system = turn(Role::System, "Be brief.");
    let questions = ["Who are you?", "漢字 and more?", "\n<|user|> Really?", "And now?"]
        .map(|text| turn(Role::User, text));
    for head in [&[][..], std::slice::from_ref(&system)] {
        let mut said = text.encode_chat(&[head, &questions[..1]].concat()).unwrap();
        for question in &questions[1..3] {
            said.extend(
                text.encode_raw("An answer.")
                    .unwrap()
                    .into_iter()
                    .map(Symbol::from),
            );
            said.extend(text.encode_continuation(std::slice::from_ref(question)).unwrap());
        }
        said.extend(
            text.encode_raw("The last answer.")
                .unwrap()
                .into_iter()
                .map(Symbol::from),
        );
        let turns = text.turns(&said).unwrap();
        assert_eq!(turns.turns.len(), 3, "a spelling in a text is no turn");
        let whole = said.len() + text.encode_continuation(&questions[3..]).unwrap().len();
        let last_alone = text.encode_chat(&[head, &questions[3..]].concat()).unwrap();
        for (left_out, most) in [(1, whole - 1), (3, last_alone.len())] {
            let room = PromptRoom {
                preferred: most,
                most,
            };
            let found =
                encode_truncated(&text, &said, &questions[3..], Truncation::OldestMessages, room).unwrap();
            let mut rest = head.to_vec();
            for question in &questions[left_out..3] {
                let last = question.content.contains("Really");
                let answer = if last { "The last answer." } else { "An answer." };
                rest.extend([question.clone(), turn(Role::Assistant, answer)]);
            }
            rest.push(questions[3].clone());
            let expected = text.encode_chat(&rest).unwrap();
            let shown = |ids: &[Symbol]| stream(&text, &plain(ids.to_vec()), false);
            assert_eq!(shown(&found.ids), shown(&expected));
            assert_eq!(found.left_out, whole - found.ids.len());
        }
    }
}
