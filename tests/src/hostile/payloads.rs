//! What hostile clients write: bodies of requests, and messages for rules.

use std::fmt::Write as _;

use serde_json::{Value, json};

use crate::chance::Chance;

/// What a node takes by default (`limits.max_payload`): of what is larger it does not read the id.
const READ: usize = 1 << 20;

/// A body, and whether the node must answer it with an outcome of its id: it is one that can be read.
pub(super) struct Body {
    pub(super) bytes: Vec<u8>,
    pub(super) is_answered: bool,
}

/// Texts of any kind of character: plain words, other scripts, controls, non-characters, emoji.
pub(super) fn text(chance: &mut Chance, characters: usize) -> String {
    let kind = chance.below(6);
    (0..characters)
        .map(|_| match kind {
            0 => chance.pick(&[' ', 'a', 'e', 'n', 't', 's', '7', '.']),
            1 => ' ',
            2 => character(chance, 0x4e00, 0x9fff),
            3 => character(chance, 0x1f300, 0x1faff),
            4 => character(chance, 1, 0x2f),
            _ => character(chance, 1, 0x10_ffff),
        })
        .collect()
}

/// Some character of a range; the surrogates between are none.
fn character(chance: &mut Chance, from: u32, to: u32) -> char {
    let code = from + u32::try_from(chance.below(u64::from(to - from + 1))).unwrap_or(0);
    char::from_u32(code).unwrap_or('\u{fffd}')
}

/// A non-character of Unicode: U+FDD0 to U+FDEF, or the last two of a plane.
pub(super) fn non_character(chance: &mut Chance) -> char {
    let code = if chance.once_in(2) {
        0xfdd0 + u32::try_from(chance.below(32)).unwrap_or(0)
    } else {
        let plane = u32::try_from(chance.below(17)).unwrap_or(0);
        (plane << 16) | 0xfffe | u32::try_from(chance.below(2)).unwrap_or(0)
    };
    char::from_u32(code).unwrap_or('\u{ffff}')
}

/// A request's body of at most about `largest` bytes.
pub(super) fn request(chance: &mut Chance, id: &str, largest: usize) -> Body {
    let answered = |value: Value| {
        let bytes = value.to_string().into_bytes();
        let is_answered = bytes.len() <= READ;
        Body { bytes, is_answered }
    };
    let unread = |bytes: Vec<u8>| Body {
        bytes,
        is_answered: false,
    };
    match chance.below(16) {
        0..=2 => answered(json!({"id": id, "prompt": text(chance, 20), "max_tokens": 1 + chance.below(6)})),
        3 | 4 => {
            // Each character may take six bytes as JSON.
            let size = chance.size(1..largest / 8);
            let body = json!({"id": id, "prompt": text(chance, size), "max_tokens": 4});
            answered(long(chance, body))
        }
        5 => {
            let word = chance.pick(&["a", "<|end|>", " ", "the ", "\u{1f525}", "\\", "\n"]);
            let prompt = word.repeat(chance.size(1..largest / (2 * word.len())));
            answered(long(chance, json!({"id": id, "prompt": prompt, "max_tokens": 4})))
        }
        6 => {
            let turns = chance.size(1..largest / 64);
            let turn = |n: usize| json!({"role": if n.is_multiple_of(2) { "user" } else { "assistant" }, "content": "x"});
            let turns: Vec<Value> = (0..turns).map(turn).collect();
            answered(long(
                chance,
                json!({"id": id, "messages": turns, "max_tokens": 4}),
            ))
        }
        7 => answered(
            json!({"id": id, "prompt": "x", "max_tokens": 3, "stream": true, "session": format!("s{}", chance.below(50))}),
        ),
        8 => unread(deep(chance, largest)),
        9 => unread(malformed(chance, id)),
        10 => {
            let size = chance.size(0..400);
            unread(chance.bytes(size))
        }
        11 => unread(Vec::new()),
        // Whatever is larger than what the node takes.
        12 => unread(vec![b'{'; chance.size(largest / 2..largest)]),
        13 => unread(
            json!({"id": text(chance, 80), "prompt": "x", "temperature": 1e308, "seed": -1})
                .to_string()
                .into_bytes(),
        ),
        14 => {
            let stops: Vec<String> = (0..chance.size(0..40)).map(|_| text(chance, 30)).collect();
            unread(
                json!({"id": id, "prompt": "x", "stop": stops, "max_tokens": 2})
                    .to_string()
                    .into_bytes(),
            )
        }
        _ => {
            let format = chance.pick(&["json_object", "json_schema", "regex", "lark", "\u{0}"]);
            let body = json!({"id": id, "prompt": "x", "response_format": {"type": format, "pattern": "(a+)+$"}, "images": [text(chance, 50)]});
            unread(body.to_string().into_bytes())
        }
    }
}

/// A body that may ask to be made to fit, and to be told of its progress.
fn long(chance: &mut Chance, mut body: Value) -> Value {
    if chance.once_in(2) {
        body["truncation"] = chance.pick(&["error", "oldest_messages", "middle"]).into();
    }
    if chance.once_in(3) {
        body["progress"] = true.into();
    }
    body
}

/// Brackets in brackets.
fn deep(chance: &mut Chance, largest: usize) -> Vec<u8> {
    // At most 18 bytes a level: a packet that the broker drops could not be counted.
    let depth = chance.size(10..largest / 24);
    let (open, close) = chance.pick(&[("[", "]"), ("{\"a\":", "}"), ("[{\"content\":[", "]}]")]);
    let inner = open.repeat(depth) + "1" + &close.repeat(if chance.once_in(2) { depth } else { 0 });
    match chance.below(3) {
        0 => inner.into_bytes(),
        1 => format!("{{\"prompt\":{inner}}}").into_bytes(),
        _ => format!("{{\"messages\":{inner},\"max_tokens\":2}}").into_bytes(),
    }
}

/// A good body with a fault in it.
fn malformed(chance: &mut Chance, id: &str) -> Vec<u8> {
    let mut bytes = json!({"id": id, "prompt": "x", "max_tokens": 4, "stop": ["a"]})
        .to_string()
        .into_bytes();
    for _ in 0..=chance.below(3) {
        let at = chance.size(0..bytes.len());
        match chance.below(3) {
            0 => bytes.truncate(at),
            1 => bytes.insert(at, 0xff),
            _ => bytes[at] ^= 1 << chance.below(8),
        }
        if bytes.is_empty() {
            break;
        }
    }
    bytes
}

/// A message for a rule: numbers at the edges, deep documents, long texts, and what is no JSON at all.
pub(super) fn of_device(chance: &mut Chance, largest: usize) -> Vec<u8> {
    let number = chance.pick(&[
        "1e308",
        "-1e308",
        "1e-320",
        "NaN",
        "\"NaN\"",
        "1e999",
        "-0",
        "9007199254740993",
        "123456789012345678901234567890",
        "0.1",
        "null",
        "true",
        "[]",
        "{}",
        "\"\"",
    ]);
    let key = match chance.below(4) {
        0 => "status".to_owned(),
        1 => text(chance, 12),
        2 => format!("device-{}", chance.below(100_000)),
        _ => format!("device-{}", chance.below(20)),
    };
    match chance.below(8) {
        0..=3 => {
            let size = chance.size(0..200);
            let note = text(chance, size);
            let (key, note) = (json!(key), json!(note));
            format!("{{\"v\":{number},\"dev\":{key},\"note\":{note},\"k\":{key}}}").into_bytes()
        }
        4 => {
            let size = chance.size(1..largest / 8);
            let note = text(chance, size);
            json!({"v": 1, "dev": key, "note": note, "k": note})
                .to_string()
                .into_bytes()
        }
        5 => deep(chance, largest),
        6 => {
            let mut wide = String::from("{\"v\":2");
            for n in 0..chance.size(1..largest / 64) {
                // Writing to a String can't fail.
                let _ = write!(wide, ",\"f{n}\":{n}");
            }
            wide.push('}');
            wide.into_bytes()
        }
        _ => {
            let size = chance.size(0..largest / 16);
            chance.bytes(size)
        }
    }
}
