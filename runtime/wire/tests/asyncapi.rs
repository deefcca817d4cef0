//! Holds docs/asyncapi.json against what this crate reads and writes.
#![allow(
    clippy::unwrap_used,
    missing_docs,
    unreachable_pub,
    reason = "a test may end at a fault"
)]

mod schema;

use std::collections::BTreeSet;
use std::time::Duration;

use phi_edge_api::{
    Answer, DeadLetter, ErrorCode, FinishReason, JobKey, PromptProgress, Refusal, Reply, ReplyAddress,
    ReplyBody,
};
use phi_edge_rules::{
    CloseReason, Event, EventError, EventWindow, FieldFacts, Output, Published, Time, Value as Fact,
};
use phi_edge_wire::{
    ParseLimits, Payload, State, Status, encode_reply, encode_too_large, parse_cancel, parse_request,
};
use proptest::prelude::*;
use serde_json::{Map, Value, json};

use schema::fault;

/// The largest `max_tokens` that a node may be set to allow, which the schema has.
const MAX_TOKENS: usize = 1 << 20;

fn document() -> Value {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/asyncapi.json");
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn reply(body: ReplyBody) -> Value {
    let reply = Reply {
        key: JobKey {
            client: None,
            id: "a".into(),
        },
        address: ReplyAddress::nowhere(),
        body,
        delivery: None,
    };
    serde_json::from_slice(&encode_reply(&reply, "box")).unwrap()
}

/// The properties of a message by their paths, and those that its schema names. Where a schema leaves names open (facts by
/// field) they count as `*`.
fn paths(document: &Value, schema: &Value, message: Option<&Value>, at: &str, found: &mut BTreeSet<String>) {
    let schema = match schema["$ref"].as_str() {
        Some(reference) => document.pointer(reference.trim_start_matches('#')).unwrap(),
        None => schema,
    };
    if let Some(items) = schema.get("items") {
        let messages = message.and_then(Value::as_array);
        match messages {
            Some(messages) => messages
                .iter()
                .for_each(|message| paths(document, items, Some(message), at, found)),
            None => paths(document, items, None, at, found),
        }
    }
    let known = schema.get("properties").and_then(Value::as_object);
    let open = schema
        .get("additionalProperties")
        .filter(|open| known.is_none() && open.is_object());
    match (message.and_then(Value::as_object), known, open) {
        (None, Some(known), _) if message.is_none() => {
            for (name, schema) in known {
                found.insert(format!("{at}/{name}"));
                paths(document, schema, None, &format!("{at}/{name}"), found);
            }
        }
        (None, _, Some(open)) if message.is_none() => {
            paths(document, open, None, &format!("{at}/*"), found);
        }
        (Some(message), Some(known), _) => {
            for (name, value) in message {
                found.insert(format!("{at}/{name}"));
                let inner = known.get(name).unwrap_or(&Value::Null);
                paths(document, inner, Some(value), &format!("{at}/{name}"), found);
            }
        }
        (Some(message), None, Some(open)) => {
            for value in message.values() {
                paths(document, open, Some(value), &format!("{at}/*"), found);
            }
        }
        _ => {}
    }
}

/// Each message is valid, and together they have exactly the properties that the schema names.
fn check(schema: &str, messages: &[Value]) {
    let document = document();
    let mut seen = BTreeSet::new();
    let root = &document["components"]["schemas"][schema];
    for message in messages {
        assert_eq!(fault(&document, root, message), None, "{schema}: {message}");
        paths(&document, root, Some(message), "", &mut seen);
    }
    let mut named = BTreeSet::new();
    paths(&document, root, None, "", &mut named);
    assert_eq!(seen, named, "{schema}");
}

const ERROR_CODES: [ErrorCode; 9] = [
    ErrorCode::BadRequest,
    ErrorCode::TooLarge,
    ErrorCode::Busy,
    ErrorCode::Expired,
    ErrorCode::Cancelled,
    ErrorCode::ContextOverflow,
    ErrorCode::Unsupported,
    ErrorCode::Unavailable,
    ErrorCode::Internal,
];

const FINISH_REASONS: [FinishReason; 4] = [
    FinishReason::Stop,
    FinishReason::Length,
    FinishReason::Cancelled,
    FinishReason::Deadline,
];

/// The words of an enumeration in the document.
fn words(schema: &str) -> BTreeSet<String> {
    let words = &document()["components"]["schemas"][schema]["enum"];
    words
        .as_array()
        .unwrap()
        .iter()
        .map(|word| word.as_str().unwrap().to_owned())
        .collect()
}

#[test]
fn replies_are_as_documented() {
    let chunk = |attempt, seq, delta: &str, progress| {
        reply(ReplyBody::Chunk {
            attempt,
            seq,
            delta: delta.into(),
            progress,
        })
    };
    let progress = Some(PromptProgress { done: 0, total: 7 });
    check(
        "Chunk",
        &[
            chunk(1, 0, "hé", None),
            chunk(2, u32::MAX, "", None),
            chunk(1, 3, "", progress),
        ],
    );

    let answer = |finish_reason| {
        reply(ReplyBody::Final(Answer {
            reply_id: "b.1".into(),
            text: "hi".into(),
            finish_reason,
            prompt_tokens: 3,
            completion_tokens: 2,
            cached_tokens: 1,
            left_out_tokens: usize::from(finish_reason == FinishReason::Stop),
            image_tokens: usize::from(finish_reason == FinishReason::Length),
            queued: Duration::from_millis(4),
            prefill: Duration::ZERO,
            decode: Duration::MAX,
            model: "phi".into(),
        }))
    };
    check("Final", &FINISH_REASONS.map(answer));
    assert_eq!(
        words("FinishReason"),
        FINISH_REASONS.map(|end| end.as_str().to_owned()).into()
    );

    let error = |code| {
        reply(ReplyBody::Error(Refusal {
            reply_id: "b.2".into(),
            code,
            message: "m".into(),
            retry_after: (code == ErrorCode::Busy).then_some(Duration::from_secs(2)),
        }))
    };
    let mut errors = ERROR_CODES.map(error).to_vec();
    errors.push(serde_json::from_slice(&encode_too_large("a", "b.3", 5, 4)).unwrap());
    check("Error", &errors);
    assert_eq!(
        words("ErrorCode"),
        ERROR_CODES.map(|code| code.as_str().to_owned()).into()
    );
}

#[test]
fn dead_letters_are_as_documented() {
    let letter = |id: Option<&str>, payload: Vec<u8>| {
        reply(ReplyBody::DeadLetter(DeadLetter {
            reason: ErrorCode::BadRequest.as_str().into(),
            message: "m".into(),
            topic: "t".into(),
            id: id.map(str::to_owned),
            bytes: payload.len(),
            payload: DeadLetter::beginning(&payload),
        }))
    };
    let undeliverable = || {
        reply(ReplyBody::DeadLetter(DeadLetter {
            reason: DeadLetter::UNDELIVERABLE.into(),
            message: "m".into(),
            topic: String::new(),
            id: Some("a".into()),
            bytes: 7,
            payload: Vec::new(),
        }))
    };
    check(
        "DeadLetter",
        &[
            letter(Some("a"), b"text".to_vec()),
            letter(None, vec![0xff]),
            letter(None, vec![b'a'; 1 << 17]),
            undeliverable(),
        ],
    );
}

fn event_of(reason: CloseReason, worded: bool) -> Value {
    let facts = FieldFacts {
        count: 2,
        min: worded.then_some(1.0),
        max: worded.then_some(2.5),
        mean: worded.then_some(1.75),
        first: Some(Fact::Number(1.0)),
        last: Some(Fact::Text("x".into())),
        rate: worded.then_some(0.15),
        from: worded.then_some(Time(0)),
        to: worded.then_some(Time(10_000)),
        values: vec![("x".into(), 1)],
    };
    let event = Event {
        event_id: "b-1".into(),
        rule: "alarms".into(),
        group: String::new(),
        window: EventWindow {
            start: Time(0),
            end: Time(60_000),
            reason,
            messages: 2,
            late: 1,
            left_out: 0,
            dropped: 0,
            closed_late: false,
        },
        stats: vec![("value".into(), facts)],
        text: worded.then(|| "hot".into()),
        unsupported_numbers: worded.then(|| vec!["9".into()]),
        data: worded.then(|| "{\"a\":1.50}".into()),
        error: (!worded).then(|| EventError {
            code: ErrorCode::Expired,
            message: "m".into(),
        }),
        finish_reason: worded.then_some(FinishReason::Stop),
        prompt_tokens: 5,
        completion_tokens: 2,
        cached_tokens: 1,
        model: "phi".into(),
    };
    reply(ReplyBody::Event(Box::new(Published {
        event,
        output: Output {
            topic: "t".into(),
            qos: 1,
            expiry: None,
            retain: false,
        },
    })))
}

#[test]
fn events_are_as_documented() {
    let reasons = [
        CloseReason::Due,
        CloseReason::Early,
        CloseReason::Full,
        CloseReason::Absence,
        CloseReason::Clock,
        CloseReason::Reload,
    ];
    let mut events = reasons.map(|reason| event_of(reason, true)).to_vec();
    events.push(event_of(CloseReason::Due, false));
    check("Event", &events);
}

#[test]
fn the_status_is_as_documented() {
    let status = |state, loaded: bool| {
        let status = Status {
            state,
            reason: (!loaded).then(|| "the model is loading".into()),
            boot_id: "b".into(),
            version: "0.1.0".into(),
            model: loaded.then(|| "phi".into()),
            context: loaded.then_some(4096),
            provider: loaded.then(|| "cpu".into()),
            provider_reason: loaded.then(|| "no better one is available".into()),
            isa: loaded.then(|| "avx2".into()),
            threads: loaded.then_some(4),
            cpus: loaded.then(|| "4-7".into()),
            features: vec!["chat".into()],
            limits: json!({"max_payload": 1, "max_tokens": 1, "max_prompt_tokens": null, "max_deadline_ms": 1,
                "queue": 1, "slots": 1, "images": 8, "image_pixels": 1}),
        };
        serde_json::from_slice(&status.encode()).unwrap()
    };
    check(
        "Status",
        &[
            status(State::Starting, false),
            status(State::Ready, true),
            status(State::Degraded, true),
            status(State::Draining, true),
            status(State::Offline, false),
        ],
    );
}

#[test]
fn cancellations_are_read_as_documented() {
    let document = document();
    let schema = &document["components"]["schemas"]["Cancel"];
    for payload in [
        json!({"id": "a-1"}),
        json!({"id": "a b"}),
        json!({"id": ""}),
        json!({"id": "a".repeat(65)}),
        json!({"id": 3}),
        json!({"id": null}),
        json!({}),
        json!({"id": "a", "x": 1}),
        json!("a"),
    ] {
        let read = parse_cancel(payload.to_string().as_bytes());
        let fault = fault(&document, schema, &payload);
        assert_eq!(read.is_ok(), fault.is_none(), "{payload}: {read:?}, {fault:?}");
    }
}

/// Base64, mostly right.
fn base64_text() -> impl Strategy<Value = String> {
    prop_oneof![
        5 => proptest::sample::select(&["eA==", "eA", "eHk=", "eHl6", "+/+/AAAA"][..]).prop_map(str::to_owned),
        1 => "[A-Za-z0-9+/]{0,6}={0,3}",
        1 => proptest::sample::select(&["eH l6", "eHl6\n", "-_-_", "eB==", "eH=6", ""][..]).prop_map(str::to_owned),
    ]
}

/// Image parts of messages, mostly right.
fn image_part() -> BoxedStrategy<Value> {
    let url = prop_oneof![
        6 => (proptest::sample::select(&["png", "jpeg", "jpg", "webp", "gif"][..]), base64_text())
            .prop_map(|(kind, data)| format!("data:image/{kind};base64,{data}")),
        1 => proptest::sample::select(&["http://a/b.png", "data:,x", "data:image/png,eA==", "eA=="][..])
            .prop_map(str::to_owned),
    ];
    let detail = proptest::sample::select(&["low", "auto", "high", "low", "auto", "high", "medium"][..]);
    prop_oneof![
        3 => base64_text().prop_map(|data| json!({"type": "image", "data": data})),
        3 => (base64_text(), detail.clone())
            .prop_map(|(data, detail)| json!({"type": "image", "data": data, "detail": detail})),
        3 => url.clone().prop_map(|url| json!({"type": "image_url", "image_url": url})),
        3 => (url.clone(), detail)
            .prop_map(|(url, detail)| json!({"type": "image_url", "image_url": {"url": url, "detail": detail}})),
        1 => url.prop_map(|url| json!({"type": "image_url", "image_url": {"url": url}, "detail": "low"})),
        1 => proptest::sample::select(vec![
            json!({"type": "image"}),
            json!({"type": "image_url"}),
            json!({"type": "image_url", "image_url": {}}),
            json!({"type": "image_url", "image_url": ["eA=="]}),
            json!({"type": "image", "data": "eA==", "text": "x"}),
            json!({"type": "text", "text": "x", "detail": "low"}),
        ]),
    ]
    .boxed()
}

/// Whether a request has images in a list and no message of the user that they could stand in, which the schema can't say.
fn lacks_users_message(request: &Map<String, Value>) -> bool {
    let messages = request.get("messages").and_then(Value::as_array);
    messages.is_some_and(|messages| messages.iter().all(|message| message["role"] != "user"))
}

/// Values of a field, right ones and wrong ones.
fn values(name: &str) -> BoxedStrategy<Value> {
    let text = || "[a-zü. ]{0,6}".prop_map(Value::from);
    let strange = prop_oneof![
        Just(json!(true)),
        Just(json!([])),
        Just(json!({})),
        Just(json!(7)),
        Just(json!(-1)),
        Just(json!("x")),
        Just(json!([1])),
        Just(Value::Null),
    ];
    let numbers = |least: f64, most: f64| {
        prop_oneof![
            4 => (least..=most).prop_map(Value::from),
            1 => Just(json!(least)),
            1 => Just(json!(most)),
            1 => Just(json!(0)),
            1 => ((most + 0.001)..1e300).prop_map(Value::from),
            1 => (-1e300..(least - 0.001)).prop_map(Value::from),
        ]
    };
    let whole = |edges: &'static [i128]| {
        let edge = proptest::sample::select(edges).prop_map(|edge| {
            match (u64::try_from(edge), i64::try_from(edge)) {
                (Ok(edge), _) => json!(edge),
                (_, Ok(edge)) => json!(edge),
                // No number of 64 bits: JSON has it all the same.
                #[expect(clippy::cast_precision_loss, reason = "beyond the bounds either way")]
                _ => json!(edge as f64),
            }
        });
        prop_oneof![2 => edge, 1 => (1..2000u64).prop_map(Value::from), 1 => Just(json!(1.5))]
    };
    let stop = || {
        prop_oneof![
            3 => "[a-z]{1,4}".prop_map(Value::from),
            1 => (250..260usize).prop_map(|length| "s".repeat(length).into()),
            1 => Just(json!("")),
            1 => Just(json!(3)),
        ]
    };
    let usual = match name {
        "id" | "session" => "[A-Za-z0-9._-]{0,3}|[a-z]{60,66}|[a ü/]{1,3}"
            .prop_map(Value::from)
            .boxed(),
        "prompt" | "system" => text().boxed(),
        "messages" => {
            let part = prop_oneof![
                12 => text().prop_map(|text| json!({"type": "text", "text": text})),
                1 => Just(json!({"type": "text"})),
                1 => Just(json!({"type": "text", "text": "x", "lang": "de"})),
                1 => Just(json!({"type": "text", "text": "x", "data": "y"})),
                4 => image_part(),
                1 => Just(json!({"text": "x"})),
                1 => Just(json!({"type": "sound", "text": "x"})),
                1 => Just(json!("x")),
            ];
            let content = prop_oneof![
                3 => text(),
                2 => proptest::collection::vec(part, 0..3).prop_map(Value::from),
                1 => Just(json!(3)),
            ];
            let role = proptest::sample::select(&["system", "user", "user", "assistant", "robot"][..]);
            let message = prop_oneof![
                6 => (role, content).prop_map(|(role, content)| json!({"role": role, "content": content})),
                1 => Just(json!({"role": "user"})),
                1 => Just(json!({"role": "user", "content": "x", "name": "y"})),
            ];
            proptest::collection::vec(message, 0..3)
                .prop_map(Value::from)
                .boxed()
        }
        "images" => proptest::collection::vec(base64_text().prop_map(Value::from), 0..2)
            .prop_map(Value::from)
            .boxed(),
        "detail" => proptest::sample::select(&["low", "auto", "high", "medium"][..])
            .prop_map(Value::from)
            .boxed(),
        "max_tokens" => whole(&[0, 1, 256, 1 << 20, (1 << 20) + 1, -1]).boxed(),
        "temperature" => numbers(0.0, 10.0).boxed(),
        "top_p" | "min_p" => numbers(0.0, 1.0).boxed(),
        "top_k" => whole(&[0, 40, (1 << 32) - 1, 1 << 32, -1]).boxed(),
        "repetition_penalty" => numbers(0.1, 10.0).boxed(),
        "seed" => whole(&[0, -1, -(1 << 63), -(1 << 64), (1 << 64) - 1, 1 << 65]).boxed(),
        "stop" => prop_oneof![
            stop(),
            proptest::collection::vec(stop(), 0..18).prop_map(Value::from)
        ]
        .boxed(),
        "response_format" => {
            proptest::sample::select(&["text", "json_object", "json_schema", "regex", "choice", "xml"][..])
                .prop_flat_map(|kind| {
                    prop_oneof![
                        3 => Just(json!({"type": kind})),
                        1 => Just(json!({"type": kind, "schema": {}})),
                    ]
                })
                .boxed()
        }
        "truncation" => {
            proptest::sample::select(&["error", "oldest_messages", "middle", "oldest", "Middle"][..])
                .prop_map(Value::from)
                .boxed()
        }
        "stream" | "progress" => any::<bool>().prop_map(Value::from).boxed(),
        "priority" => proptest::sample::select(&["interactive", "normal", "background", "high"][..])
            .prop_map(Value::from)
            .boxed(),
        "deadline_ms" => whole(&[0, 1, (1 << 64) - 1, 1 << 65, -1]).boxed(),
        _ => Just(json!(1)).boxed(),
    };
    // Mostly right, or no request of many fields ever would be.
    prop_oneof![30 => usual, 1 => strange].boxed()
}

/// No field of a request.
const UNKNOWN_FIELD: &str = "max_token";

/// Requests of some of the schema's fields, seldom with one that it does not have.
fn requests() -> impl Strategy<Value = Map<String, Value>> {
    let schema = document()["components"]["schemas"]["Request"]["properties"].clone();
    let names: Vec<String> = schema.as_object().unwrap().keys().cloned().collect();
    let others: Vec<String> = names
        .into_iter()
        .filter(|name| name != "prompt" && name != "messages")
        .collect();
    let asked = prop_oneof![
        6 => Just(vec!["prompt"]),
        6 => Just(vec!["messages"]),
        1 => Just(vec!["prompt", "messages"]),
        1 => Just(vec![]),
    ];
    let some = proptest::sample::subsequence(others, 0..4);
    let unknown = prop_oneof![15 => Just(None), 1 => Just(Some(UNKNOWN_FIELD))];
    (asked, some, unknown).prop_flat_map(|(asked, some, unknown)| {
        let names = asked.into_iter().map(str::to_owned).chain(some);
        let fields: Vec<_> = names
            .chain(unknown.map(str::to_owned))
            .map(|name| {
                let values = values(&name);
                (Just(name), values)
            })
            .collect();
        fields.prop_map(Map::from_iter)
    })
}

fn read(request: &Map<String, Value>) -> Result<bool, (ErrorCode, String)> {
    let text = Value::Object(request.clone()).to_string();
    let payload = Payload {
        bytes: text.as_bytes(),
        content_type: None,
        question: None,
    };
    let limits = ParseLimits {
        max_tokens: MAX_TOKENS,
        images: 100,
    };
    parse_request(payload, limits)
        .map(|parsed| parsed.is_some())
        .map_err(|rejected| (rejected.code, rejected.message))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4096, failure_persistence: None, ..ProptestConfig::default() })]

    /// A request is taken if and only if it is valid. What this version does not support yet is valid.
    #[test]
    fn requests_are_read_as_documented(mut request in requests()) {
        thread_local!(static DOCUMENT: Value = document());
        if matches!(read(&request), Err((ErrorCode::Unsupported, _))) {
            // Told before other faults are looked for.
            request.remove("response_format");
        }
        if lacks_users_message(&request) {
            request.remove("images");
        }
        let taken = read(&request);
        let mut plain = request.clone();
        // Of a name that is not known it is a fault all the same.
        plain.retain(|name, value| !value.is_null() || name == UNKNOWN_FIELD);
        prop_assert_eq!(taken.is_ok(), read(&plain).is_ok(), "null is not as absent: {:?}", request);
        let fault = DOCUMENT.with(|document| {
            fault(document, &document["components"]["schemas"]["Request"], &Value::Object(plain))
        });
        prop_assert_eq!(taken.is_ok(), fault.is_none(), "{:?}: {:?}, {:?}", request, taken, fault);
    }
}

/// The strategy above would prove little if it hardly ever made a good request.
#[test]
fn good_and_bad_requests_are_both_made() {
    use proptest::strategy::ValueTree as _;
    use proptest::test_runner::TestRunner;
    let mut runner = TestRunner::deterministic();
    let strategy = requests();
    let good = (0..500)
        .filter(|_| read(&strategy.new_tree(&mut runner).unwrap().current()).is_ok())
        .count();
    assert!((100..400).contains(&good), "{good} of 500 are good");
}
