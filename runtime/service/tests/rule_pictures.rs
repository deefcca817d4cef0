//! Rules that take pictures: what the model is asked about a window of them.

#![allow(clippy::unwrap_used, reason = "a test may end at a fault")]

mod support;

use std::sync::Arc;
use std::time::Duration;

use phi_edge_engine::Finish;
use phi_edge_rules::{
    Event, Field, PayloadFormat, PictureChoice, PictureDetail, PromptSource, Rule, RuleMessage, WindowKind,
};
use phi_edge_service::{ErrorCode, ReplyBody};
use support::{Bench, summary, text_of};

/// Windows of three pictures.
fn gate(choice: PictureChoice) -> Rule {
    let text = "{{ pictures|length }} of {{ window.messages }}: {{ pictures[0].bytes }}";
    let kind = WindowKind::Count { messages: 3 };
    let mut rule = Rule::new("r", "gate/#", kind, PromptSource::Text(text.to_owned()));
    rule.payload = PayloadFormat::Image;
    rule.picture.choice = choice;
    rule.picture.detail = PictureDetail::Low;
    rule.fields = vec![Field {
        name: "size".to_owned(),
        pointer: "/bytes".to_owned(),
    }];
    rule.summary.max_tokens = 16;
    rule.summary.deadline = Duration::from_mins(1);
    rule
}

/// A file that begins as JPEG does, and is damaged beyond.
fn damaged(bytes: usize) -> Vec<u8> {
    let mut file = b"\xFF\xD8\xFF\xE0".to_vec();
    file.resize(bytes, 0);
    file
}

async fn bench(rule: Rule, files: Vec<Vec<u8>>) -> Bench {
    let bench = Bench::with_images(10_000);
    bench.service.set_rules(vec![rule]).unwrap();
    for file in files {
        let message = RuleMessage {
            topic: "gate/1".to_owned(),
            payload: file,
            rules: vec![Arc::from("r")],
            receipt: None,
            redelivered: false,
        };
        if let Some(mut observed) = bench.service.ingest(&message) {
            observed.wait().await;
        }
    }
    bench
}

async fn event(bench: &mut Bench) -> Event {
    match bench.body().await {
        ReplyBody::Event(published) => published.event,
        other => panic!("not an event: {other:?}"),
    }
}

#[tokio::test]
async fn the_model_is_shown_the_chosen_picture_before_the_text() {
    for (choice, expected) in [
        (PictureChoice::Newest, "\n1 of 3: 30"),
        (PictureChoice::First, "\n1 of 3: 10"),
    ] {
        let files = [10, 20, 30].map(damaged).into();
        let mut bench = bench(gate(choice), files).await;
        let (request, sink) = bench.asked().await;
        assert_eq!(text_of(&request.prompt), expected);
        sink.text("A van.");
        sink.finish(summary(Finish::Stop, 2));
        let event = event(&mut bench).await;
        assert_eq!(event.text.as_deref(), Some("A van."));
        let (_, size) = &event.stats[0];
        assert_eq!((size.count, size.min, size.max), (3, Some(10.0), Some(30.0)));
    }
}

#[tokio::test]
async fn the_model_is_not_asked_about_a_window_without_pictures() {
    for choice in [PictureChoice::Newest, PictureChoice::Sheet(2)] {
        let files = [&b"no"[..], b"picture", b"{}"].map(<[u8]>::to_vec).into();
        let mut bench = bench(gate(choice), files).await;
        let event = event(&mut bench).await;
        let error = event.error.unwrap();
        assert_eq!(error.code, ErrorCode::BadRequest);
        assert!(
            error
                .message
                .starts_with("none of the 3 messages of the window is a picture"),
            "{}",
            error.message
        );
        assert_eq!(event.stats[0].1.count, 3);
    }
}

#[tokio::test]
async fn a_damaged_picture_of_a_sheet_is_not_among_those_shown() {
    let good = include_bytes!("../../../tests/fixtures/vision/images/dot.png").to_vec();
    let bytes = good.len();
    let files = vec![damaged(10), good, damaged(30)];
    let mut bench = bench(gate(PictureChoice::Sheet(3)), files).await;
    let (request, sink) = bench.asked().await;
    assert_eq!(text_of(&request.prompt), format!("\n1 of 3: {bytes}"));
    sink.finish(summary(Finish::Stop, 1));
    assert_eq!(event(&mut bench).await.error, None);
}

#[tokio::test]
async fn facts_go_without_words_where_no_picture_can_be_read() {
    let files = [10, 20, 30].map(damaged).into();
    let mut bench = bench(gate(PictureChoice::Sheet(2)), files).await;
    let event = event(&mut bench).await;
    let error = event.error.unwrap();
    assert_eq!(error.code, ErrorCode::BadRequest);
    assert!(
        error.message.starts_with("none of the 2 pictures can be read: "),
        "{}",
        error.message
    );
    assert!(!error.message.contains('\n'));
    assert_eq!(event.stats[0].1.count, 3);
}
