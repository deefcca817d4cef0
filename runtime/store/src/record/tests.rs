use phi_edge_api::ReplyTarget;

use super::*;

#[test]
fn dead_letters_are_kept_as_they_are_and_read_as_they_were() {
    for payload in [b"text".to_vec(), vec![0xff, 0]] {
        let letter = ReplyBody::DeadLetter(DeadLetter {
            reason: "bad_request".into(),
            message: "m".into(),
            topic: "t".into(),
            id: None,
            payload,
            bytes: 1 << 20,
        });
        let row = serde_json::to_string(&BodyRow::of(&letter)).expect("a row");
        let read: BodyRow = serde_json::from_str(&row).expect("a row");
        assert_eq!(read.body(), Some(letter), "{row}");
    }
    let earlier = r#"{"kind":"dead_letter","reason":"r","message":"m","topic":"t","payload":[97,255]}"#;
    let read: BodyRow = serde_json::from_str(earlier).expect("a row");
    match read.body() {
        Some(ReplyBody::DeadLetter(letter)) => {
            assert_eq!((letter.payload.as_slice(), letter.bytes), (&b"a\xff"[..], 2));
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_rows_of_addresses_are_those_of_earlier_versions() {
    for (target, row) in [
        (ReplyTarget::Topic("t".into()), r#"{"topic":"t"}"#),
        (ReplyTarget::Nowhere, r#"{"topic":""}"#),
        (ReplyTarget::Held, r#"{"topic":"","held":true}"#),
    ] {
        let address = ReplyAddress::from(target);
        let written = serde_json::to_string(&AddressRow::from(&address)).expect("a row");
        assert_eq!(written, row);
        let read: AddressRow = serde_json::from_str(row).expect("a row");
        assert_eq!(ReplyAddress::from(read), address);
    }
}

#[test]
fn an_expiry_goes_on_over_a_restart() {
    let minute = std::time::Duration::from_mins(1);
    let row = |expires: Option<i64>| BodyRow::Event {
        event: serde_json::from_str(EVENT).unwrap(),
        output: OutputRow::of(&phi_edge_rules::Output {
            topic: "t".into(),
            qos: 1,
            expiry: Some(minute),
            retain: false,
        }),
        expires,
    };
    let expiry = |row: BodyRow| match row.body() {
        Some(ReplyBody::Event(published)) => published.output.expiry.unwrap(),
        other => panic!("{other:?}"),
    };
    let now = wall_ms();
    let left = expiry(row(Some(now + 30_000)));
    assert!(left <= minute / 2 && left > minute / 3, "{left:?}");
    assert_eq!(expiry(row(Some(now - 1))), std::time::Duration::ZERO);
    assert_eq!(
        expiry(row(Some(now + 3_600_000))),
        minute,
        "the clock was set back"
    );
    assert_eq!(expiry(row(None)), minute, "an earlier version wrote it");
    let Some(ReplyBody::Event(published)) = row(None).body() else {
        panic!("no event")
    };
    let written = BodyRow::of(&ReplyBody::Event(published)).unwrap();
    let text = serde_json::to_string(&written).unwrap();
    assert!(text.contains("\"expires\":1"), "{text}");
}

#[test]
fn rows_of_earlier_versions_have_whole_prompts_and_no_progress() {
    let earlier = r#"{"max_tokens":5,"temperature":0.0,"top_k":0,"top_p":1.0,"min_p":0.0,"repetition_penalty":1.0,
        "seed":1,"stop":[],"stream":true,"priority":1}"#;
    let key = JobKey {
        client: None,
        id: "a".into(),
    };
    let row: RequestRow = serde_json::from_str(earlier).expect("a row");
    assert_eq!(row.left_out_tokens, 0);
    let mut job = row.job(key.clone(), [0; 32], ReplyAddress::nowhere());
    assert!(job.stream && !job.progress);
    job.progress = true;
    let written = serde_json::to_string(&RequestRow::of(&job, 7)).expect("a row");
    let row: RequestRow = serde_json::from_str(&written).expect("a row");
    assert_eq!(row.left_out_tokens, 7);
    assert_eq!(row.job(key, [0; 32], ReplyAddress::nowhere()), job);
    let answer = r#"{"kind":"final","reply_id":"r","text":"t","finish_reason":"stop","prompt_tokens":3,
        "completion_tokens":2,"cached_tokens":1,"queued_ns":0,"prefill_ns":0,"decode_ns":0,"model":"m"}"#;
    let row: BodyRow = serde_json::from_str(answer).expect("a row");
    let Some(ReplyBody::Final(mut answer)) = row.body() else {
        panic!("no answer")
    };
    assert_eq!(answer.left_out_tokens, 0);
    answer.left_out_tokens = 9;
    let body = ReplyBody::Final(answer);
    let written = serde_json::to_string(&BodyRow::of(&body)).expect("a row");
    let row: BodyRow = serde_json::from_str(&written).expect("a row");
    assert_eq!(row.body(), Some(body));
}

const EVENT: &str = r#"{"event_id":"e1","rule":"r","group":"g","start":1,"end":2,"reason":"due","messages":1,
    "late":0,"left_out":0,"dropped":0,"closed_late":false,"stats":[],"text":null,"unsupported_numbers":null,
    "data":null,"error":null,"finish_reason":null,"prompt_tokens":0,"completion_tokens":0,"cached_tokens":0,
    "model":""}"#;
