#![allow(clippy::unwrap_used)]

use phi_edge_api::{JobKey, ReplyAddress, Role};
use proptest::prelude::*;

use super::*;
use crate::quote::MAX_MESSAGE_CHARS;

const LIMITS: ParseLimits = ParseLimits {
    max_tokens: 1000,
    images: 3,
};

fn parse(text: &str) -> Result<Option<Request>, RequestError> {
    parse_request(
        Payload {
            bytes: text.as_bytes(),
            content_type: None,
            question: None,
        },
        LIMITS,
    )
}

fn error(text: &str) -> RequestError {
    parse(text).expect_err(text)
}

#[test]
fn plain_text_is_the_prompt() {
    let parsed = parse("Why is the sky blue?").unwrap().unwrap();
    assert_eq!(parsed.messages, [user("Why is the sky blue?")]);
    assert_eq!((parsed.id, parsed.max_tokens), (None, 256));
}

#[test]
fn nothing_asks_nothing() {
    assert_eq!(parse(""), Ok(None));
}

#[test]
fn every_field_arrives() {
    let parsed = parse(
        r#"{"id":"a.b_c-1","prompt":"p","system":"s","max_tokens":7,"temperature":0.5,"top_p":0.9,"top_k":40,
        "min_p":0.1,"repetition_penalty":1.1,"seed":-1,"stop":["x","y"],"stream":true,"priority":"interactive","truncation":"middle","progress":true,
        "deadline_ms":1500,"session":"talk-1","response_format":{"type":"text"},"images":[],"detail":"high"}"#,
    )
    .unwrap()
    .unwrap();
    assert_eq!(
        parsed,
        Request {
            id: Some("a.b_c-1".into()),
            messages: vec![Message::new(Role::System, "s"), user("p")],
            images: Vec::new(),
            max_tokens: 7,
            sampling: Sampling {
                temperature: 0.5,
                top_k: 40,
                top_p: 0.9,
                min_p: 0.1,
                repetition_penalty: 1.1,
                seed: u64::MAX
            },
            seeded: true,
            stop: vec!["x".into(), "y".into()],
            truncation: Truncation::Middle,
            stream: true,
            progress: true,
            priority: Priority::Interactive,
            deadline: Some(Duration::from_millis(1500)),
            session: Some("talk-1".into()),
        }
    );
}

#[test]
fn content_may_be_parts() {
    let parsed = parse(
        r#"{"messages":[{"role":"system","content":"s"},{"role":"user","content":[{"type":"text","text":"a"},{"type":"text","text":"b"}]},
        {"role":"assistant","content":"c"},{"role":"user","content":"d"}]}"#,
    )
    .unwrap()
    .unwrap();
    let texts: Vec<_> = parsed.messages.iter().map(|m| m.content.as_str()).collect();
    assert_eq!(texts, ["s", "ab", "c", "d"]);
}

#[test]
fn faults_are_named() {
    for (text, says) in [
        ("{", "EOF"),
        (r#"{"prompt":"x"} y"#, "trailing"),
        (r#"{"prompt":3}"#, "prompt: invalid type"),
        (r#"{"prompt":"x","max_token":3}"#, "max_token"),
        (r#"{"prompt":"x","max_tokens":0}"#, "max_tokens: 0"),
        (r#"{"prompt":"x","max_tokens":1001}"#, "1 to 1000"),
        (r#"{"prompt":"x","max_tokens":1.5}"#, "max_tokens"),
        (r#"{"prompt":"x","temperature":-1}"#, "temperature"),
        (r#"{"prompt":"x","top_p":0}"#, "top_p"),
        (r#"{"prompt":"x","seed":"a"}"#, "seed"),
        (r#"{"prompt":"x","stop":[""]}"#, "stop[0]"),
        (r#"{"prompt":"x","stop":3}"#, "stop"),
        (r#"{"prompt":"x","priority":"high"}"#, "priority"),
        (
            r#"{"prompt":"x","truncation":"auto"}"#,
            "truncation: unknown variant `auto`, expected one of `error`, `oldest_messages`, `middle`",
        ),
        (r#"{"prompt":"x","truncation":true}"#, "truncation: invalid type"),
        (r#"{"prompt":"x","truncation":{"middle":null}}"#, "truncation"),
        (r#"{"prompt":"x","progress":"yes"}"#, "progress: invalid type"),
        (r#"{"prompt":"x","progress":1}"#, "progress: invalid type"),
        (r#"{"prompt":"x","deadline_ms":0}"#, "deadline_ms"),
        (r#"{"prompt":"x","messages":[]}"#, "prompt and messages"),
        (r#"{"prompt":" "}"#, "blank"),
        (r#"{"messages":[]}"#, "empty"),
        (
            r#"{"messages":[{"role":"robot","content":"x"}]}"#,
            "messages[0].role",
        ),
        (r#"{"messages":[{"role":"user"}]}"#, "content"),
        (
            r#"{"messages":[{"role":"user","content":3}]}"#,
            "messages[0].content",
        ),
        (
            r#"{"messages":[{"role":"user","content":[{"type":"sound"}]}]}"#,
            "type",
        ),
        (r#"{"id":"a b","prompt":"x"}"#, "id:"),
        (r#"{"session":"a b","prompt":"x"}"#, "session:"),
        (r#"{"session":7,"prompt":"x"}"#, "session:"),
        (
            r#"{"prompt":"x","response_format":{"type":"xml"}}"#,
            "response_format",
        ),
        (r#"{"prompt":"x","response_format":["text"]}"#, "response_format"),
        (r#"{"prompt":"x","response_format":{}}"#, "response_format: type"),
        (r#"{"prompt":"x","temperature":1e400}"#, "temperature"),
        (r#"{"prompt":"x","temperature":NaN}"#, "temperature"),
        (r#"{"prompt":"x","temperature":Infinity}"#, "temperature"),
        (r#"{"prompt":"x","temperature":"1"}"#, "temperature"),
        (r#"{"prompt":"x","top_p":1e-400}"#, "top_p"),
        (r#"{"prompt":"x","top_p":-0.0}"#, "top_p"),
        (r#"{"prompt":"x","seed":1e400}"#, "seed"),
        (r#"{"prompt":"x","seed":-0}"#, "seed"),
        (r#"{"prompt":"x","seed":18446744073709551616}"#, "seed"),
        (r#"{"prompt":"x","seed":-9223372036854775809}"#, "seed"),
        (r#"{"prompt":"x","top_k":4294967296}"#, "top_k"),
        (r#"{"prompt":"x","max_tokens":-0.0}"#, "max_tokens"),
        (r#"{"prompt":"x","stop":""}"#, "stop[0]"),
        (r#"{"prompt":"x","stop":["a",null]}"#, "stop[1]"),
        ("{}", "prompt or messages"),
        (r#"{"prompt":"x","prompt":"y"}"#, "duplicate"),
    ] {
        let rejected = error(text);
        assert_eq!(rejected.code, ErrorCode::BadRequest, "{text}");
        assert!(rejected.message.contains(says), "{text}: {}", rejected.message);
        assert!(!rejected.message.contains('\n'), "{text}");
    }
}

#[test]
fn unknown_and_doubled_members_are_named_wherever_they_stand() {
    let part = |members: &str| format!(r#"{{"messages":[{{"role":"user","content":[{{{members}}}]}}]}}"#);
    let format = |members: &str| format!(r#"{{"prompt":"x","response_format":{{{members}}}}}"#);
    for (text, says) in [
        (
            part(r#""type":"text","text":"x","lang":"de""#),
            "messages[0].content[0].lang",
        ),
        (
            part(r#""type":"image","data":"eA==","details":"low""#),
            "messages[0].content[0].details",
        ),
        (
            part(r#""type":"image_url","image_url":{}"#),
            "messages[0].content[0].image_url: missing field `url`",
        ),
        (
            part(r#""type":"image_url","image_url":{"url":"data:image/png;base64,eA==","size":1}"#),
            "messages[0].content[0].image_url.size",
        ),
        (
            part(r#""type":"image_url","image_url":"eA==","detail":"low""#),
            "messages[0].content[0].detail",
        ),
        (
            part(r#""type":"text","text":"x","data":"y""#),
            "messages[0].content[0].data",
        ),
        (
            part(r#""type":"image","text":"x""#),
            "messages[0].content[0].text",
        ),
        (part(r#""type":"image","data":5"#), "messages[0].content[0].data"),
        (
            part(r#""type":"text","text":"x","text":"y""#),
            "duplicate field `text`",
        ),
        (
            part(r#""type":"text","type":"text","text":"y""#),
            "duplicate field `type`",
        ),
        (part(r#""text":"y""#), "messages[0].content[0].type"),
        (format(r#""type":"text","schema":{}"#), "\"schema\""),
        (
            format(r#""type":"json_object","type":"text""#),
            "duplicate field `type`",
        ),
        (
            r#"{"messages":[{"role":"user","role":"user","content":"x"}]}"#.into(),
            "duplicate field `role`",
        ),
        (
            r#"{"messages":[{"role":"user","content":"x","content":"y"}]}"#.into(),
            "duplicate field `content`",
        ),
        (
            r#"{"messages":[{"role":"user","content":"x","name":"y"}]}"#.into(),
            "messages[0].name",
        ),
        (
            r#"{"id":"a","prompt":"x","id":"b"}"#.into(),
            "duplicate field `id`",
        ),
        (
            r#"{"prompt":"x","seed":1,"seed":1}"#.into(),
            "duplicate field `seed`",
        ),
    ] {
        let rejected = error(&text);
        assert_eq!(rejected.code, ErrorCode::BadRequest, "{text}");
        assert!(rejected.message.contains(says), "{text}: {}", rejected.message);
    }
    // Of an id given twice none is answered to.
    assert_eq!(error(r#"{"id":"a","prompt":"x","id":"b"}"#).id, None);
}

#[test]
fn lists_are_no_objects_and_objects_are_no_words() {
    let as_json = |text: &str| {
        parse_request(
            Payload {
                bytes: text.as_bytes(),
                content_type: Some("application/json"),
                question: None,
            },
            LIMITS,
        )
    };
    for text in [
        r#"["a","hello"]"#,
        r#"[null,"hello",null,null,null,null,null,null,null,null,null,null,null,null,null,null,null,null,null,null]"#,
        r#""hello""#,
        r#"{"messages":[["user","hello"]]}"#,
        r#"{"messages":[{"role":{"user":null},"content":"x"}]}"#,
        r#"{"messages":[{"role":"user","content":[["text","x"]]}]}"#,
        r#"{"messages":[{"role":"user","content":[{"type":{"text":null},"text":"x"}]}]}"#,
        r#"{"messages":{"role":"user","content":"x"}}"#,
        r#"{"prompt":"x","priority":{"normal":null}}"#,
        r#"{"prompt":"x","response_format":["text"]}"#,
    ] {
        assert_eq!(
            as_json(text).expect_err(text).code,
            ErrorCode::BadRequest,
            "{text}"
        );
    }
}

/// A number as JSON may spell it.
fn spelled_number() -> impl Strategy<Value = String> {
    prop_oneof![
        any::<f64>().prop_map(|number| format!("{number:e}")),
        any::<i128>().prop_map(|number| number.to_string()),
        any::<u64>().prop_map(|number| number.to_string()),
        (0.0f64..12.0).prop_map(|number| number.to_string()),
        proptest::sample::select(
            &[
                "-0",
                "-0.0",
                "1e400",
                "-1e400",
                "1e-400",
                "1e-46",
                "1e-45",
                "10",
                "10.0000000001",
                "0.1",
                "1"
            ][..]
        )
        .prop_map(str::to_owned),
        "-?[0-9]{1,3}(\\.[0-9]{1,3})?([eE][+-]?[0-9]{1,4})?",
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2048))]

    #[test]
    fn what_is_accepted_is_within_the_bounds(
        field in proptest::sample::select(&FIELDS[..]), number in spelled_number(),
    ) {
        let text = format!(r#"{{"messages":[{{"role":"user","content":"x"}}],"{field}":{number}}}"#);
        let Ok(parsed) = parse(&text) else { return Ok(()) };
        let Request { sampling: s, max_tokens, deadline, .. } = parsed.unwrap();
        prop_assert!((0.0..=10.0).contains(&s.temperature), "{}", text);
        prop_assert!(s.top_p > 0.0 && s.top_p <= 1.0, "{}", text);
        prop_assert!((0.0..=1.0).contains(&s.min_p), "{}", text);
        prop_assert!((0.1..=10.0).contains(&s.repetition_penalty), "{}", text);
        prop_assert!(u32::try_from(s.top_k).is_ok(), "{}", text);
        prop_assert!((1..=1000).contains(&max_tokens), "{}", text);
        prop_assert!(deadline.is_none_or(|deadline| !deadline.is_zero()), "{}", text);
    }
}

#[test]
fn faults_quote_little() {
    let long = "ü".repeat(5000);
    for text in [
        format!(r#"{{"prompt":"x","max_tokens":"{long}"}}"#),
        format!(r#"{{"prompt":"x","{long}":1}}"#),
        format!(r#"{{"prompt":"x","temperature":-1,"priority":"{long}"}}"#),
        format!(r#"{{"prompt":"x","id":"{long}"}}"#),
    ] {
        let message = error(&text).message;
        assert!(message.chars().count() <= MAX_MESSAGE_CHARS + 1, "{message}");
    }
}

#[test]
fn the_field_at_fault_is_named_without_a_word_of_the_payload() {
    for (text, field) in [
        (r#"{"prompt":"x","max_tokens":"secret"}"#, "max_tokens"),
        (r#"{"messages":[{"role":"secret","content":"x"}]}"#, "messages"),
        (r#"{"prompt":"x","top_p":0}"#, "top_p"),
        (r#"{"prompt":"x","secret":1}"#, "payload"),
        (r#"{"prompt":"secret"#, "prompt"),
        (r#"{"id":"not an id","prompt":"x"}"#, "id"),
    ] {
        assert_eq!(error(text).field(), field, "{text}: {}", error(text).message);
    }
}

#[test]
fn what_is_to_come_is_unsupported() {
    let text = r#"{"prompt":"x","response_format":{"type":"json_object"}}"#;
    assert_eq!(error(text).code, ErrorCode::Unsupported);
}

#[test]
fn the_id_is_found_in_what_is_wrong() {
    assert_eq!(error(r#"{"id":"a","prompt":3}"#).id.as_deref(), Some("a"));
    assert_eq!(error(r#"{"id":"a b","prompt":3}"#).id, None);
    assert_eq!(
        error(r#"{"id":"a","prompt":"x","max_tokens":0}"#).id.as_deref(),
        Some("a")
    );
}

#[test]
fn the_content_type_decides_before_the_first_byte() {
    let as_type = |bytes, content_type| {
        parse_request(
            Payload {
                bytes,
                content_type: Some(content_type),
                question: None,
            },
            LIMITS,
        )
    };
    assert!(
        as_type(b" {\"prompt\":\"x\"}", "application/json; charset=utf-8")
            .unwrap()
            .is_some()
    );
    assert!(as_type(b"Hello", "application/json").is_err());
    assert!(as_type(b"Hello", "text/plain").unwrap().is_some());
    assert!(
        parse_request(
            Payload {
                bytes: b"\xff\xfe",
                content_type: None,
                question: None,
            },
            LIMITS
        )
        .is_err()
    );
}

#[test]
fn a_job_has_the_earlier_deadline_and_the_clients_seed() {
    let job = |text: &str, expiry: Option<u64>| {
        let envelope = Envelope {
            key: JobKey {
                client: None,
                id: "a".into(),
            },
            reply: ReplyAddress::nowhere(),
            body_digest: [1; 32],
            payload_bytes: text.len(),
            expiry: expiry.map(Duration::from_millis),
            seed: 9,
            receipt: None,
        };
        let job = parse(text).unwrap().unwrap().into_job(envelope);
        (
            job.deadline.map(|deadline| deadline.as_millis()),
            job.sampling.seed,
        )
    };
    assert_eq!(job("x", None), (None, 9));
    assert_eq!(job("x", Some(5)), (Some(5), 9));
    assert_eq!(
        job(r#"{"prompt":"x","deadline_ms":7,"seed":3}"#, None),
        (Some(7), 3)
    );
    assert_eq!(job(r#"{"prompt":"x","deadline_ms":7}"#, Some(5)), (Some(5), 9));
    assert_eq!(job(r#"{"prompt":"x","deadline_ms":7}"#, Some(50)), (Some(7), 9));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1024))]

    /// Whatever comes: an error that says something in one line, or a request that could be served.
    #[test]
    fn no_payload_is_too_strange(bytes in prop_oneof![
        proptest::collection::vec(any::<u8>(), 0..200),
        r#"\{"(prompt|id|messages|seed|stop|max_tokens)":("[a-z\\u0-9]{0,8}"|-?[0-9]{1,25}|\[\]|null|true|\{\}|1e999)(,|\}|)"#
            .prop_map(String::into_bytes),
    ]) {
        let limits = ParseLimits { max_tokens: 100, images: 2 };
        match parse_request(Payload { bytes: &bytes, content_type: None, question: None }, limits) {
            Ok(None) => prop_assert!(bytes.is_empty()),
            Ok(Some(parsed)) => {
                prop_assert!(!parsed.messages.is_empty());
                prop_assert!((1..=100).contains(&parsed.max_tokens));
            }
            Err(rejected) => {
                prop_assert!(!rejected.message.is_empty());
                prop_assert!(!rejected.message.contains('\n'));
            }
        }
    }
}

mod images;
