//! What becomes of the images of requests: admission, the engine's pixels, sessions, restarts.

#![allow(clippy::unwrap_used, reason = "a test may end at a fault")]

mod support;

use phi_edge_engine::{Finish, GenerateRequest, PixelState, Symbol};
use phi_edge_models::PlacedImage;
use phi_edge_service::{
    Answer, Detail, EngineCommand, ErrorCode, LastEnd, NewJob, ReplyBody, RequestImage, ServiceConfig,
};
use support::{Bench, job, summary, text_of};

/// The tokens of an image of detail `auto`.
const AUTO: usize = 4;

fn question(id: &str, files: &[&[u8]]) -> NewJob {
    let mut job = job(id);
    let images = files.iter().map(|file| RequestImage {
        file: (*file).into(),
        detail: Detail::Auto,
    });
    job.images = images.collect();
    let places = (0..files.len()).map(|image| PlacedImage::unread(0, image));
    job.messages[0].images = places.collect();
    job
}

fn answer(body: ReplyBody) -> Answer {
    match body {
        ReplyBody::Final(answer) => answer,
        other => panic!("not an answer: {other:?}"),
    }
}

fn image_places(prompt: &[Symbol]) -> usize {
    prompt.iter().filter(|symbol| symbol.image().is_some()).count()
}

/// The pixels of an image, which the engine is woken for.
async fn pixels(bench: &mut Bench, request: &GenerateRequest, image: usize) -> PixelState {
    let source = &request.images[image].source;
    assert!(matches!(source.pixels(), PixelState::Pending));
    assert!(matches!(bench.commands.recv().await, Some(EngineCommand::Wake)));
    source.pixels()
}

#[tokio::test]
async fn the_engine_gets_the_images_that_the_prompt_names_and_their_pixels_when_it_asks() {
    let mut bench = Bench::with_images(1000);
    // The same picture twice is one image.
    bench
        .service
        .submit(question("a", &[b"gate", b"yard", b"gate"]))
        .await
        .unwrap();
    let (request, sink) = bench.asked().await;
    assert_eq!(text_of(&request.prompt), "question a");
    assert_eq!(image_places(&request.prompt), 3 * AUTO);
    let tokens: Vec<usize> = request.images.iter().map(|image| image.tokens).collect();
    assert_eq!(tokens, [AUTO; 2]);
    for image in 0..2 {
        assert!(
            matches!(pixels(&mut bench, &request, image).await, PixelState::Ready(pixels) if pixels.crops == AUTO)
        );
    }
    sink.text("A gate.");
    sink.finish(summary(Finish::Stop, 2));
    assert_eq!(answer(bench.body().await).image_tokens, 3 * AUTO);
    bench.service.submit(question("b", &[])).await.unwrap();
    let (request, sink) = bench.asked().await;
    assert!(request.images.is_empty());
    sink.finish(summary(Finish::Stop, 2));
    assert_eq!(answer(bench.body().await).image_tokens, 0);
}

#[tokio::test]
async fn damaged_and_large_images_are_refused_before_the_request_is_accepted() {
    let bench = Bench::with_images(1000);
    let damaged = bench.service.submit(question("a", &[b"gate", b"!"])).await;
    let refusal = damaged.unwrap_err();
    assert_eq!(
        (refusal.code, refusal.message.as_str()),
        (ErrorCode::BadRequest, "images[1]: can't be read: it is cut short")
    );
    bench.service.set_limits(&ServiceConfig {
        image_pixels: 3,
        ..ServiceConfig::default()
    });
    let refusal = bench.service.submit(question("b", &[b"gate"])).await.unwrap_err();
    assert_eq!(
        (refusal.code, refusal.message.as_str()),
        (
            ErrorCode::TooLarge,
            "images[0]: has 4 pixels, limits.image_pixels is 3; send a smaller one"
        )
    );
    assert_eq!(bench.service.stats().queued, 0);
}

#[tokio::test]
async fn a_session_shows_the_images_of_its_earlier_turns() {
    let mut bench = Bench::with_images(1000);
    let turn = |id: &str, files: &[&[u8]]| {
        let mut job = question(id, files);
        job.session = Some("s".to_owned());
        job
    };
    for (id, files, images) in [
        ("1", &[b"gate".as_slice()][..], 1),
        ("2", &[], 1),
        ("3", &[b"yard"], 2),
    ] {
        bench.service.submit(turn(id, files)).await.unwrap();
        let (request, sink) = bench.asked().await;
        assert_eq!(request.images.len(), images, "turn {id}");
        assert_eq!(image_places(&request.prompt), images * AUTO);
        for image in 0..images {
            assert!(matches!(
                pixels(&mut bench, &request, image).await,
                PixelState::Ready(_)
            ));
        }
        sink.text("Yes.");
        sink.finish(summary(Finish::Stop, 2));
        assert_eq!(answer(bench.body().await).image_tokens, images * AUTO);
    }
}

#[tokio::test]
async fn a_session_whose_images_exceed_the_memory_is_forgotten() {
    let mut bench = Bench::with_images(1000);
    bench.service.set_limits(&ServiceConfig {
        session_memory: 10_000,
        ..ServiceConfig::default()
    });
    for (id, session, file) in [("1", "a", vec![b'a'; 6000]), ("2", "b", vec![b'b'; 6000])] {
        let mut job = question(id, &[&file]);
        job.session = Some(session.to_owned());
        bench.service.submit(job).await.unwrap();
        let (_, sink) = bench.asked().await;
        sink.finish(summary(Finish::Stop, 2));
        bench.body().await;
    }
    for (id, session, images) in [("3", "a", 0), ("4", "b", 1)] {
        let mut job = question(id, &[]);
        job.session = Some(session.to_owned());
        bench.service.submit(job).await.unwrap();
        let (request, sink) = bench.asked().await;
        assert_eq!(request.images.len(), images, "session {session}");
        sink.finish(summary(Finish::Stop, 2));
        bench.body().await;
    }
}

#[tokio::test]
async fn a_job_of_an_earlier_process_has_its_images() {
    let folder = tempfile::tempdir().unwrap();
    let mut bench = Bench::durable_with_images(folder.path(), LastEnd::Innocent);
    let mut job = question("a", &[b"gate", b"yard"]);
    job.session = Some("s".to_owned());
    bench.service.submit(job).await.unwrap();
    let (before, sink) = bench.asked().await;
    drop((sink, bench));
    let mut bench = Bench::durable_with_images(folder.path(), LastEnd::Innocent);
    let (request, sink) = bench.asked().await;
    assert_eq!(request.prompt, before.prompt);
    let ids = |request: &GenerateRequest| request.images.iter().map(|image| image.id).collect::<Vec<_>>();
    assert_eq!(ids(&request), ids(&before));
    assert!(matches!(
        pixels(&mut bench, &request, 1).await,
        PixelState::Ready(_)
    ));
    sink.finish(summary(Finish::Stop, 2));
    assert_eq!(answer(bench.body().await).image_tokens, 2 * AUTO);
    // Its session goes on with them.
    let mut next = question("b", &[]);
    next.session = Some("s".to_owned());
    bench.service.submit(next).await.unwrap();
    assert_eq!(bench.asked().await.0.images.len(), 2);
}
