//! What becomes of jobs: admission, order, duplicates, cancellation, deadlines, streaming, failure.

mod support;

use std::sync::Arc;
use std::time::Duration;

use phi_edge_engine::{Failure, Finish, TokenId};
use phi_edge_service::{
    Answer, Detail, ErrorCode, FinishReason, NewJob, Priority, ReplyBody, ReplyTarget, RequestImage,
    ServiceConfig,
};
use support::{Bench, job, key, settle, summary};
use tokio::time::Instant;

fn answer(body: ReplyBody) -> Answer {
    match body {
        ReplyBody::Final(answer) => answer,
        other => panic!("not an answer: {other:?}"),
    }
}

fn question(id: &str, change: impl FnOnce(&mut NewJob)) -> NewJob {
    let mut job = job(id);
    change(&mut job);
    job
}

#[tokio::test(start_paused = true)]
async fn a_job_is_answered_once() {
    let mut bench = Bench::new();
    bench.service.submit(job("a")).await.unwrap();
    let (request, sink) = bench.asked().await;
    assert_eq!(request.prompt.len(), "question a".len());
    assert_eq!(request.max_tokens, 16);
    assert_eq!(bench.service.stats().running, 1);
    sink.text("Hel");
    sink.text("lo");
    sink.finish(summary(Finish::Stop, 2));
    let reply = bench.reply().await;
    assert_eq!(reply.key, key("a"));
    assert_eq!(reply.address, job("a").reply);
    let answer = answer(reply.body);
    assert_eq!(answer.text, "Hello");
    assert_eq!(answer.finish_reason, FinishReason::Stop);
    assert_eq!((answer.prompt_tokens, answer.completion_tokens), (10, 2));
    assert_eq!(answer.decode, Duration::from_millis(30));
    assert!(bench.is_silent().await);
    let stats = bench.service.stats();
    assert_eq!(
        (stats.running, stats.queued, stats.served, stats.failed),
        (0, 0, 1, 0)
    );
    assert!(stats.tokens_per_s > 0.0);
}

#[tokio::test(start_paused = true)]
async fn waiting_counts_as_queued() {
    let mut bench = Bench::new();
    bench.service.submit(job("a")).await.unwrap();
    let (_request, sink) = bench.asked().await;
    bench.service.submit(job("b")).await.unwrap();
    settle().await;
    tokio::time::advance(Duration::from_secs(3)).await;
    sink.finish(summary(Finish::Stop, 1));
    assert_eq!(bench.reply().await.key, key("a"));
    let (_request, sink) = bench.asked().await;
    sink.finish(summary(Finish::Length, 1));
    let answer = answer(bench.body().await);
    assert!(answer.queued >= Duration::from_secs(3), "{:?}", answer.queued);
    assert_eq!(answer.finish_reason, FinishReason::Length);
}

#[tokio::test(start_paused = true)]
async fn priority_first_then_arrival() {
    let mut bench = Bench::new();
    bench.service.submit(job("first")).await.unwrap();
    let (_request, mut running) = bench.asked().await;
    for (id, priority) in [
        ("b1", Priority::Background),
        ("n1", Priority::Normal),
        ("i1", Priority::Interactive),
        ("n2", Priority::Normal),
        ("i2", Priority::Interactive),
        ("b2", Priority::Background),
    ] {
        bench
            .service
            .submit(question(id, |job| job.priority = priority))
            .await
            .unwrap();
    }
    let mut order = Vec::new();
    for _ in 0..6 {
        running.finish(summary(Finish::Stop, 1));
        bench.reply().await;
        let (request, sink) = bench.asked().await;
        let text: Vec<u8> = request
            .prompt
            .iter()
            .filter_map(|symbol| u8::try_from(symbol.token()?.0).ok())
            .collect();
        order.push(String::from_utf8(text).unwrap().replace("question ", ""));
        running = sink;
    }
    assert_eq!(order, ["i1", "i2", "n1", "n2", "b1", "b2"]);
}

#[tokio::test(start_paused = true)]
async fn what_waits_for_memory_is_not_in_the_way_of_what_ranks_higher() {
    // The engine of the bench has memory for 150 tokens, and a context of 100.
    let mut bench = Bench::with(ServiceConfig::default(), 3, 64);
    let sized = |id: &str, most: usize, priority| {
        question(id, |job| {
            job.max_tokens = most;
            job.priority = priority;
        })
    };
    let jobs = [
        ("a", 80, Priority::Normal),
        ("b", 80, Priority::Background),
        ("c", 20, Priority::Background),
        ("d", 20, Priority::Interactive),
    ];
    for (id, most, priority) in jobs {
        bench.service.submit(sized(id, most, priority)).await.unwrap();
    }
    let (_, a) = bench.asked().await;
    let (request, d) = bench.asked().await;
    assert_eq!(request.max_tokens, 20);
    // The one behind it would fit, and is not to pass it.
    assert!(bench.asks_nothing().await);
    a.finish(summary(Finish::Stop, 1));
    bench.reply().await;
    let (request, _b) = bench.asked().await;
    assert_eq!(request.max_tokens, 80);
    d.finish(summary(Finish::Stop, 1));
    let (request, _c) = bench.asked().await;
    assert_eq!(request.max_tokens, 20);
}

#[tokio::test(start_paused = true)]
async fn slots_bound_what_runs() {
    let mut bench = Bench::with(ServiceConfig::default(), 2, 64);
    for id in ["a", "b", "c"] {
        bench.service.submit(job(id)).await.unwrap();
    }
    let (_a, a) = bench.asked().await;
    let (_b, _sink) = bench.asked().await;
    assert!(bench.asks_nothing().await);
    assert_eq!(
        (bench.service.stats().running, bench.service.stats().queued),
        (2, 1)
    );
    a.finish(summary(Finish::Stop, 1));
    bench.asked().await;
}

#[tokio::test(start_paused = true)]
async fn a_full_queue_is_busy_and_says_when_to_return() {
    let config = ServiceConfig {
        queue: 2,
        ..ServiceConfig::default()
    };
    let mut bench = Bench::with(config, 1, 64);
    bench.service.submit(job("a")).await.unwrap();
    let (_request, sink) = bench.asked().await;
    bench.service.submit(job("b")).await.unwrap();
    bench.service.submit(job("c")).await.unwrap();
    let refusal = bench.service.submit(job("d")).await.unwrap_err();
    assert_eq!(refusal.code, ErrorCode::Busy);
    assert!(refusal.retry_after.unwrap() >= Duration::from_secs(1));
    assert!(!refusal.reply_id.is_empty());
    sink.finish(summary(Finish::Stop, 1));
    bench.reply().await;
    bench.asked().await;
    // A refused id is not a known one.
    bench.service.submit(job("d")).await.unwrap();
    assert_eq!(bench.service.stats().refused, 1);
}

#[tokio::test(start_paused = true)]
async fn outcomes_that_nobody_takes_hold_new_work_back() {
    let config = ServiceConfig {
        queue: 1,
        ..ServiceConfig::default()
    };
    let mut bench = Bench::with(config, 1, 1);
    for id in ["a", "b"] {
        bench.service.submit(job(id)).await.unwrap();
        let (_request, sink) = bench.asked().await;
        sink.finish(summary(Finish::Stop, 1));
        settle().await;
    }
    assert_eq!(bench.service.stats().outcomes_waiting, 1);
    let refusal = bench.service.submit(job("c")).await.unwrap_err();
    assert_eq!(refusal.code, ErrorCode::Busy);
    assert_eq!(bench.reply().await.key, key("a"));
    settle().await;
    bench.service.submit(job("c")).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_repeat_after_the_end_gets_the_same_outcome() {
    let mut bench = Bench::new();
    bench.service.submit(job("a")).await.unwrap();
    let (_request, sink) = bench.asked().await;
    sink.text("x");
    sink.finish(summary(Finish::Stop, 1));
    let first = bench.reply().await;
    bench.service.submit(job("a")).await.unwrap();
    assert_eq!(bench.reply().await, first);
    let elsewhere = question("a", |job| {
        job.reply.target = ReplyTarget::Topic("replies/other".to_owned())
    });
    bench.service.submit(elsewhere).await.unwrap();
    let copy = bench.reply().await;
    assert_eq!(
        (copy.body, copy.address.topic()),
        (first.body, Some("replies/other"))
    );
    bench.service.submit_redelivered(job("a")).await.unwrap();
    assert!(bench.is_silent().await);
    assert!(bench.asks_nothing().await);
}

#[tokio::test(start_paused = true)]
async fn what_is_held_for_pick_up_is_kept_and_not_sent() {
    let mut bench = Bench::new();
    let held = question("a", |job| {
        job.reply = ReplyTarget::Held.into();
        job.stream = true;
    });
    bench.service.submit(held.clone()).await.unwrap();
    let (_request, sink) = bench.asked().await;
    sink.text("x");
    sink.finish(summary(Finish::Stop, 1));
    assert!(bench.is_silent().await);
    bench.service.submit(held).await.unwrap();
    assert!(bench.is_silent().await);
    bench.service.submit(job("a")).await.unwrap();
    assert_eq!(bench.reply().await.address.topic(), Some("replies/a"));
    assert!(bench.asks_nothing().await);
}

#[tokio::test(start_paused = true)]
async fn a_repeat_before_the_end_waits_with_it() {
    let mut bench = Bench::new();
    bench.service.submit(job("a")).await.unwrap();
    let (_request, sink) = bench.asked().await;
    bench.service.submit(job("a")).await.unwrap();
    bench.service.submit_redelivered(job("a")).await.unwrap();
    let elsewhere = question("a", |job| {
        job.reply.target = ReplyTarget::Topic("replies/other".to_owned())
    });
    bench.service.submit(elsewhere).await.unwrap();
    sink.finish(summary(Finish::Stop, 1));
    let (one, two) = (bench.reply().await, bench.reply().await);
    assert_eq!(one.body, two.body);
    assert_eq!(
        (one.address.topic(), two.address.topic()),
        (Some("replies/a"), Some("replies/other"))
    );
    assert!(bench.is_silent().await);
}

#[tokio::test(start_paused = true)]
async fn the_same_id_with_another_body_is_refused() {
    let mut bench = Bench::new();
    bench.service.submit(job("a")).await.unwrap();
    let other = question("a", |job| job.body_digest = [8; 32]);
    let refusal = bench.service.submit(other.clone()).await.unwrap_err();
    assert_eq!(refusal.code, ErrorCode::BadRequest);
    // Another client's id is its own.
    let client = question("a", |job| {
        job.body_digest = [8; 32];
        job.key.client = None;
    });
    bench.service.submit(client).await.unwrap();
    let (_request, sink) = bench.asked().await;
    sink.finish(summary(Finish::Stop, 1));
    bench.reply().await;
    assert_eq!(
        bench.service.submit(other).await.unwrap_err().code,
        ErrorCode::BadRequest
    );
}

#[tokio::test(start_paused = true)]
async fn outcomes_are_forgotten_in_the_end() {
    let config = ServiceConfig {
        max_deadline: Duration::from_mins(1),
        keep_for: Duration::from_mins(1),
        keep_outcomes: 2,
        ..ServiceConfig::default()
    };
    let mut bench = Bench::with(config, 1, 64);
    for id in ["a", "b", "c"] {
        bench.service.submit(job(id)).await.unwrap();
        let (_request, sink) = bench.asked().await;
        sink.finish(summary(Finish::Stop, 1));
        bench.reply().await;
    }
    // The outcome of "a" was one too many to keep: it runs again.
    bench.service.submit(job("a")).await.unwrap();
    let (_request, sink) = bench.asked().await;
    sink.finish(summary(Finish::Stop, 1));
    bench.reply().await;
    tokio::time::sleep(Duration::from_secs(61)).await;
    bench.service.submit(job("c")).await.unwrap();
    bench.asked().await;
}

#[tokio::test(start_paused = true)]
async fn cancelling_before_the_start_is_an_error() {
    let mut bench = Bench::new();
    bench.service.submit(job("a")).await.unwrap();
    let (_request, _sink) = bench.asked().await;
    bench.service.submit(job("b")).await.unwrap();
    assert!(bench.service.cancel(&key("b")));
    let reply = bench.reply().await;
    assert_eq!(reply.key, key("b"));
    assert!(matches!(reply.body, ReplyBody::Error(e) if e.code == ErrorCode::Cancelled));
    assert!(!bench.service.cancel(&key("b")));
    assert!(!bench.service.cancel(&key("unknown")));
    assert!(bench.is_silent().await);
}

#[tokio::test(start_paused = true)]
async fn cancelling_a_running_job_keeps_its_text() {
    let mut bench = Bench::new();
    bench.service.submit(job("a")).await.unwrap();
    let (request, mut sink) = bench.asked().await;
    // What the engine says of a run that serves one alone.
    bench.interrupt.set_sole_request(request.id);
    sink.text("so far");
    settle().await;
    assert!(!sink.is_cancelled());
    assert!(bench.service.cancel(&key("a")));
    sink.cancelled().await;
    assert!(sink.is_cancelled());
    assert!(bench.interrupt.is_raised(), "a lone request's run is cut short");
    sink.finish(summary(Finish::Cancelled, 2));
    let answer = answer(bench.body().await);
    assert_eq!(
        (answer.text.as_str(), answer.finish_reason),
        ("so far", FinishReason::Cancelled)
    );
    assert!(bench.is_silent().await);
}

#[tokio::test(start_paused = true)]
async fn a_shared_run_is_not_cut_short() {
    let mut bench = Bench::with(ServiceConfig::default(), 2, 64);
    bench.service.submit(job("a")).await.unwrap();
    bench.service.submit(job("b")).await.unwrap();
    let (_a, mut a) = bench.asked().await;
    let (_b, _b_sink) = bench.asked().await;
    // What the engine says of a run that serves several.
    bench.interrupt.clear_sole_request();
    bench.service.cancel(&key("a"));
    a.cancelled().await;
    assert!(!bench.interrupt.is_raised());
}

#[tokio::test(start_paused = true)]
async fn an_end_that_comes_first_beats_the_cancellation() {
    let mut bench = Bench::new();
    bench.service.submit(job("a")).await.unwrap();
    let (_request, sink) = bench.asked().await;
    bench.service.cancel(&key("a"));
    sink.finish(summary(Finish::Stop, 2));
    assert_eq!(answer(bench.body().await).finish_reason, FinishReason::Stop);
}

#[tokio::test(start_paused = true)]
async fn a_job_that_waits_too_long_expires() {
    let mut bench = Bench::new();
    bench.service.submit(job("a")).await.unwrap();
    let (_request, sink) = bench.asked().await;
    let started = Instant::now();
    let late = question("b", |job| job.deadline = Some(Duration::from_secs(5)));
    bench.service.submit(late).await.unwrap();
    let refusal = bench.error().await;
    assert_eq!(refusal.code, ErrorCode::Expired);
    assert!(started.elapsed() < Duration::from_secs(6));
    sink.finish(summary(Finish::Stop, 1));
    bench.reply().await;
    assert!(bench.asks_nothing().await, "an expired job is never started");
    let none = question("c", |job| job.deadline = Some(Duration::ZERO));
    assert_eq!(
        bench.service.submit(none).await.unwrap_err().code,
        ErrorCode::Expired
    );
}

#[tokio::test(start_paused = true)]
async fn a_running_job_ends_at_its_deadline_with_its_text() {
    let mut bench = Bench::new();
    let short = question("a", |job| job.deadline = Some(Duration::from_secs(5)));
    bench.service.submit(short).await.unwrap();
    let (_request, mut sink) = bench.asked().await;
    sink.text("half");
    sink.cancelled().await;
    sink.finish(summary(Finish::Cancelled, 1));
    let answer = answer(bench.body().await);
    assert_eq!(
        (answer.text.as_str(), answer.finish_reason),
        ("half", FinishReason::Deadline)
    );
}

#[tokio::test(start_paused = true)]
async fn the_limit_is_everybodys_deadline() {
    let config = ServiceConfig {
        max_deadline: Duration::from_secs(2),
        ..ServiceConfig::default()
    };
    let mut bench = Bench::with(config, 1, 64);
    let long = question("a", |job| job.deadline = Some(Duration::from_secs(500)));
    bench.service.submit(long).await.unwrap();
    let (_request, mut sink) = bench.asked().await;
    let started = Instant::now();
    sink.cancelled().await;
    assert!(started.elapsed() <= Duration::from_secs(2));
}

#[tokio::test(start_paused = true)]
async fn an_engine_that_hangs_does_not_hold_the_outcome() {
    let mut bench = Bench::new();
    bench.service.submit(job("a")).await.unwrap();
    let (_request, _sink) = bench.asked().await;
    bench.service.cancel(&key("a"));
    assert_eq!(bench.error().await.code, ErrorCode::Unavailable);
}

#[tokio::test(start_paused = true)]
async fn prompts_that_cannot_run_are_refused() {
    let mut bench = Bench::new();
    let content = |text: String| question("a", |job| job.messages[0].content = text);
    let refusal = bench.service.submit(content("x".repeat(100))).await.unwrap_err();
    assert_eq!(refusal.code, ErrorCode::ContextOverflow);
    assert!(refusal.message.contains("100 tokens"), "{}", refusal.message);
    let refusal = bench.service.submit(content("!".to_owned())).await.unwrap_err();
    assert_eq!(refusal.code, ErrorCode::BadRequest);
    assert!(refusal.message.contains("the template refuses it"));
    let refusal = bench.service.submit(content("*".to_owned())).await.unwrap_err();
    assert_eq!(refusal.code, ErrorCode::Internal);
    assert!(bench.asks_nothing().await);
    assert_eq!(bench.service.stats().refused, 3);
}

#[tokio::test(start_paused = true)]
async fn images_are_unsupported_by_a_model_for_text_alone() {
    let mut bench = Bench::new();
    let image = RequestImage {
        file: Arc::from(&b"\x89PNG"[..]),
        detail: Detail::default(),
    };
    let refusal = bench
        .service
        .submit(question("a", |job| job.images = vec![image]))
        .await;
    let refusal = refusal.unwrap_err();
    assert_eq!(refusal.code, ErrorCode::Unsupported);
    assert_eq!(refusal.message, "images: this model takes text alone");
    assert!(bench.asks_nothing().await);
    bench.service.submit(job("a")).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_failing_model_is_an_internal_error() {
    let mut bench = Bench::new();
    bench.service.submit(job("a")).await.unwrap();
    let (_request, sink) = bench.asked().await;
    sink.fail(Failure::Decoder("out of luck".to_owned()));
    let refusal = bench.error().await;
    assert_eq!(refusal.code, ErrorCode::Internal);
    assert!(refusal.message.contains("out of luck"));
    assert_eq!(bench.service.stats().failed, 1);
}

#[tokio::test(start_paused = true)]
async fn an_answer_in_circles_counts_as_length() {
    let mut bench = Bench::new();
    bench.service.submit(job("a")).await.unwrap();
    let (_request, sink) = bench.asked().await;
    sink.finish(summary(Finish::Repetition, 9));
    assert_eq!(answer(bench.body().await).finish_reason, FinishReason::Length);
}

#[tokio::test(start_paused = true)]
async fn a_lost_engine_ends_everything_at_once() {
    let mut bench = Bench::new();
    bench.service.submit(job("a")).await.unwrap();
    let (_request, sink) = bench.asked().await;
    bench.service.submit(job("b")).await.unwrap();
    drop(sink);
    bench.commands.close();
    let codes = [bench.error().await.code, bench.error().await.code];
    assert_eq!(codes, [ErrorCode::Unavailable; 2]);
    bench.service.engine_lost().await;
    let refusal = bench.service.submit(job("c")).await.unwrap_err();
    assert_eq!(refusal.code, ErrorCode::Unavailable);
}

#[tokio::test(start_paused = true)]
async fn chunks_come_at_once_and_then_at_intervals() {
    let mut bench = Bench::new();
    bench
        .service
        .submit(question("a", |job| job.stream = true))
        .await
        .unwrap();
    let (_request, sink) = bench.asked().await;
    let started = Instant::now();
    let mut text = String::new();
    for n in 0..20 {
        sink.text(&format!("{n} "));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    sink.text("end");
    sink.finish(summary(Finish::Stop, 21));
    let mut seqs = 0;
    let last = loop {
        match bench.body().await {
            ReplyBody::Chunk {
                attempt,
                seq,
                delta,
                progress: None,
            } => {
                assert_eq!((attempt, seq), (1, seqs));
                if seq == 0 {
                    assert_eq!(delta, "0 ");
                }
                seqs += 1;
                text.push_str(&delta);
            }
            other => break answer(other),
        }
    };
    assert!(started.elapsed() < Duration::from_secs(1));
    assert!((4..=7).contains(&seqs), "{seqs} chunks in 400 ms");
    assert_eq!(text, last.text);
    assert!(last.text.ends_with("19 end"));
}

#[tokio::test(start_paused = true)]
async fn a_reader_that_lags_gets_longer_chunks_and_the_whole_text() {
    let mut bench = Bench::with(ServiceConfig::default(), 1, 1);
    bench
        .service
        .submit(question("a", |job| job.stream = true))
        .await
        .unwrap();
    let (_request, sink) = bench.asked().await;
    for _ in 0..50 {
        sink.text("word ");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(matches!(bench.body().await, ReplyBody::Chunk { seq: 0, .. }));
    tokio::time::sleep(Duration::from_millis(200)).await;
    let ReplyBody::Chunk { seq: 1, delta, .. } = bench.body().await else {
        panic!("the second chunk")
    };
    assert_eq!(delta, "word ".repeat(49));
    sink.finish(summary(Finish::Stop, 50));
    assert_eq!(answer(bench.body().await).text, "word ".repeat(50));
}

#[tokio::test(start_paused = true)]
async fn reply_ids_differ() {
    let mut bench = Bench::new();
    let mut ids = Vec::new();
    for id in ["a", "b"] {
        bench.service.submit(job(id)).await.unwrap();
        let (_request, sink) = bench.asked().await;
        sink.finish(summary(Finish::Stop, 1));
        ids.push(answer(bench.body().await).reply_id);
    }
    let other = question("a", |job| job.body_digest = [9; 32]);
    ids.push(bench.service.submit(other).await.unwrap_err().reply_id);
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), 3);
}

#[tokio::test(start_paused = true)]
async fn waiting_long_outweighs_priority() {
    let mut bench = Bench::new();
    bench.service.submit(job("runs")).await.unwrap();
    let (_request, sink) = bench.asked().await;
    let background = question("old", |job| job.priority = Priority::Background);
    bench.service.submit(background).await.unwrap();
    tokio::time::sleep(Duration::from_secs(70)).await;
    let interactive = question("new", |job| job.priority = Priority::Interactive);
    bench.service.submit(interactive).await.unwrap();
    sink.finish(summary(Finish::Stop, 1));
    bench.reply().await;
    let (_request, sink) = bench.asked().await;
    sink.finish(summary(Finish::Stop, 1));
    assert_eq!(bench.reply().await.key, key("old"));
}

#[tokio::test(start_paused = true)]
async fn a_session_goes_on_with_the_ids_of_what_was_said() {
    let mut bench = Bench::new();
    let in_session = |id: &str| question(id, |job| job.session = Some("talk".into()));
    let text = |ids: &[phi_edge_engine::Symbol]| -> String {
        ids.iter()
            .filter_map(|id| char::from_u32(id.token()?.0))
            .collect()
    };
    bench.service.submit(in_session("a")).await.unwrap();
    let (_, sink) = bench.asked().await;
    let refused = bench.service.submit(in_session("b")).await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::Busy);
    assert!(
        refused.message.contains("talk") && refused.retry_after.is_some(),
        "{refused:?}"
    );
    // A repeat of the running one is none of that.
    bench.service.submit(in_session("a")).await.unwrap();
    sink.finish(summary(Finish::Stop, 2));
    answer(bench.body().await);
    // What can't be encoded leaves the session as it was, and so does what fails.
    let broken = question("c", |job| {
        job.session = Some("talk".into());
        job.messages[0].content = "!".into();
    });
    bench.service.submit(broken).await.unwrap_err();
    bench.service.submit(in_session("d")).await.unwrap();
    let (request, sink) = bench.asked().await;
    assert_eq!(text(&request.prompt), "question aAA|question d");
    sink.fail(Failure::Decoder("broken".into()));
    bench.error().await;
    bench.service.submit(in_session("e")).await.unwrap();
    let (request, sink) = bench.asked().await;
    assert_eq!(text(&request.prompt), "question aAA|question e");
    sink.finish(summary(Finish::Stop, 1));
    answer(bench.body().await);
    // Too long is said with what the session holds of it.
    let long = question("f", |job| {
        job.session = Some("talk".into());
        job.messages[0].content = "x".repeat(90);
    });
    let refused = bench.service.submit(long).await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::ContextOverflow);
    assert!(refused.message.contains("session"), "{}", refused.message);
    // In time it is forgotten.
    tokio::time::advance(Duration::from_mins(31)).await;
    bench.service.submit(in_session("g")).await.unwrap();
    let (request, _sink) = bench.asked().await;
    assert_eq!(text(&request.prompt), "question g");
}

#[tokio::test(start_paused = true)]
async fn a_session_does_not_hold_a_stop_text_that_its_client_never_saw() {
    let mut bench = Bench::new();
    let in_session = |id: &str| {
        question(id, |job| {
            job.session = Some("talk".into());
            job.stop = vec!["END".into()];
        })
    };
    let ids = |text: &str| -> Vec<TokenId> { text.chars().map(|c| TokenId(u32::from(c))).collect() };
    let mut said = String::new();
    for (n, (generated, seen, finish)) in [
        ("ja, übrigens END", "ja, übrigens ", Finish::Stop),
        ("END", "", Finish::Stop),
        ("€EN", "€EN", Finish::Length),
        ("EEND", "E", Finish::Stop),
        // By a stop id, within what may have become the stop text.
        ("xEN", "xEN", Finish::Stop),
    ]
    .into_iter()
    .enumerate()
    {
        let id = n.to_string();
        bench.service.submit(in_session(&id)).await.unwrap();
        let (request, sink) = bench.asked().await;
        let between = if said.is_empty() { "" } else { "|" };
        said = format!("{said}{between}question {id}");
        assert_eq!(request.prompt, ids(&said));
        sink.text(seen);
        let mut summary = summary(finish, 0);
        summary.tokens = ids(generated);
        sink.finish(summary);
        let answer = answer(bench.body().await);
        assert_eq!(answer.text, seen);
        assert_eq!(
            answer.completion_tokens,
            generated.chars().count(),
            "what was generated was paid for"
        );
        said.push_str(seen);
    }
}
