//! What becomes of long prompts: truncation, the progress of their computation, and deadlines that they can't meet.

#![allow(clippy::unwrap_used)]

mod support;

use std::time::Duration;

use phi_edge_engine::{Finish, PrefillRuns, Summary};
use phi_edge_models::{Message, Role};
use phi_edge_service::{
    Answer, ErrorCode, LastEnd, NewJob, PromptProgress, Refusal, ReplyBody, ServiceConfig, Truncation,
};
use support::{Bench, job, settle, summary, text_of};

fn message(role: Role, content: &str) -> Message {
    Message::new(role, content.to_owned())
}

/// A job of messages of the user, with room for 10 new tokens of the context of 100.
fn long(id: &str, truncation: Truncation, contents: &[&str]) -> NewJob {
    NewJob {
        messages: contents
            .iter()
            .map(|content| message(Role::User, content))
            .collect(),
        truncation,
        max_tokens: 10,
        ..job(id)
    }
}

async fn answer(bench: &mut Bench) -> Answer {
    loop {
        match bench.body().await {
            ReplyBody::Chunk { .. } => {}
            ReplyBody::Final(answer) => return answer,
            other => panic!("not an answer: {other:?}"),
        }
    }
}

async fn refused(bench: &Bench, job: NewJob) -> Refusal {
    bench.service.submit(job).await.unwrap_err()
}

#[tokio::test(start_paused = true)]
async fn the_prompt_is_made_to_fit_and_the_answer_tells_by_how_much() {
    let mut bench = Bench::new();
    let [old, newer, last] = ["o".repeat(40), "n".repeat(40), "l".repeat(30)];
    let contents = [old.as_str(), newer.as_str(), last.as_str()];
    let middle = format!("{old}{}{}{last}", "n".repeat(20), "n".repeat(20));
    for (id, truncation, contents, expected, left_out) in [
        (
            "a",
            Truncation::OldestMessages,
            contents.as_slice(),
            format!("{newer}{last}"),
            40,
        ),
        (
            "b",
            Truncation::Middle,
            &contents,
            format!("{}{newer}{last}", "o".repeat(20)),
            20,
        ),
        (
            "c",
            Truncation::Middle,
            &[&middle],
            format!("{old}{}{}{last}", "n".repeat(5), "n".repeat(15)),
            20,
        ),
        ("d", Truncation::Middle, &[&last], last.clone(), 0),
    ] {
        bench
            .service
            .submit(long(id, truncation, contents))
            .await
            .unwrap();
        let (request, sink) = bench.asked().await;
        assert_eq!(text_of(&request.prompt), expected, "{id}");
        sink.finish(summary(Finish::Stop, 1));
        assert_eq!(answer(&mut bench).await.left_out_tokens, left_out, "{id}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_can_not_be_made_to_fit_is_refused_with_the_numbers() {
    let bench = Bench::new();
    let (short, long_text) = ("s".repeat(20), "x".repeat(100));
    let contents = [short.as_str(), long_text.as_str()];
    for (truncation, says) in [
        (
            Truncation::Error,
            "the prompt has 120 tokens, and max_tokens asks for 10 more; with room for one new token the context takes \
             100; shorten the prompt, or ask with truncation oldest_messages or middle",
        ),
        (
            Truncation::OldestMessages,
            "the prompt has 100 tokens without all messages that truncation may leave out",
        ),
    ] {
        let refusal = refused(&bench, long("a", truncation, &contents)).await;
        assert_eq!(refusal.code, ErrorCode::ContextOverflow);
        assert!(refusal.message.contains(says), "{}", refusal.message);
    }
    // Each text is short, and there are many.
    let many = vec!["123456"; 20];
    let refusal = refused(&bench, long("a", Truncation::Middle, &many)).await;
    assert_eq!(refusal.code, ErrorCode::ContextOverflow);
    let says = "at least 116 tokens without the middle of its longest message";
    assert!(refusal.message.contains(says), "{}", refusal.message);
}

#[tokio::test(start_paused = true)]
async fn the_limit_of_prompts_holds_for_truncated_ones() {
    let config = ServiceConfig {
        max_prompt_tokens: Some(50),
        ..ServiceConfig::default()
    };
    let mut bench = Bench::with(config, 1, 64);
    let text = "x".repeat(60);
    let middle = long("a", Truncation::Middle, &[&text]);
    bench.service.submit(middle).await.unwrap();
    let (request, _sink) = bench.asked().await;
    assert_eq!(request.prompt.len(), 50);
    let refusal = refused(&bench, long("b", Truncation::OldestMessages, &["old", &text])).await;
    assert_eq!(refusal.code, ErrorCode::TooLarge);
    let says =
        "has 60 tokens without all messages that truncation may leave out, limits.max_prompt_tokens is 50";
    assert!(refusal.message.contains(says), "{}", refusal.message);
}

#[tokio::test(start_paused = true)]
async fn a_session_forgets_its_oldest_turns() {
    let mut bench = Bench::new();
    let mut left_out = Vec::new();
    let mut last = String::new();
    for n in 0..6 {
        let content = format!("question {n} {}", "q".repeat(15));
        let mut asked = long(&n.to_string(), Truncation::OldestMessages, &[&content]);
        asked.session = Some("talk".into());
        bench.service.submit(asked).await.unwrap();
        let (request, sink) = bench.asked().await;
        last = text_of(&request.prompt);
        assert!(last.len() <= 90 && last.ends_with(&content), "{last}");
        sink.finish(summary(Finish::Stop, 4));
        left_out.push(answer(&mut bench).await.left_out_tokens);
    }
    // A question has 26 tokens, an answer 4, and there is one between turns.
    assert_eq!(left_out, [0, 0, 0, 31, 31, 31]);
    assert!(last.starts_with("question 3 "), "{last}");
    // By default a session that is full is an error, which says so.
    let mut asked = long("x", Truncation::Error, &["y"]);
    asked.session = Some("talk".into());
    asked.messages = vec![message(Role::User, &"y".repeat(30))];
    let refusal = refused(&bench, asked).await;
    assert_eq!(refusal.code, ErrorCode::ContextOverflow);
    assert!(
        refusal
            .message
            .contains("92 of them are what the session has said so far: begin a new one, or ask with truncation oldest_messages"),
        "{}",
        refusal.message
    );
    // The middle of a message is none of what was said.
    let mut asked = long("z", Truncation::Middle, &["y"]);
    asked.session = Some("talk".into());
    asked.messages = vec![message(Role::User, "yyyyy"); 4];
    let refusal = refused(&bench, asked).await;
    assert!(
        refusal
            .message
            .ends_with("or ask with truncation oldest_messages to leave out its oldest turns"),
        "{}",
        refusal.message
    );
}

#[tokio::test(start_paused = true)]
async fn a_request_that_is_cancelled_before_its_first_token_leaves_its_session_as_it_was() {
    let mut bench = Bench::new();
    let ask = |id: &str, letter: &str| {
        let mut asked = long(id, Truncation::OldestMessages, &[&letter.repeat(40)]);
        asked.session = Some("talk".into());
        asked
    };
    for (id, letter) in [("a", "a"), ("b", "b")] {
        bench.service.submit(ask(id, letter)).await.unwrap();
        let (_request, sink) = bench.asked().await;
        sink.finish(summary(Finish::Stop, 2));
        answer(&mut bench).await;
    }
    // The oldest turn is left out of its prompt, and is there again after it.
    for (id, finish, tokens) in [
        ("c", Finish::Cancelled, 0),
        ("d", Finish::Deadline, 0),
        ("e", Finish::Cancelled, 1),
    ] {
        bench.service.submit(ask(id, "c")).await.unwrap();
        let (request, sink) = bench.asked().await;
        let prompt = text_of(&request.prompt);
        assert!(
            prompt.starts_with('b') && prompt.ends_with(&"c".repeat(40)),
            "{prompt}"
        );
        sink.finish(summary(finish, tokens));
        answer(&mut bench).await;
        let mut next = ask(&format!("{id} and on"), "d");
        next.truncation = Truncation::Error;
        next.messages = vec![message(Role::User, &"d".repeat(40))];
        let refusal = refused(&bench, next).await;
        let said = if tokens == 0 { 85 } else { 84 };
        assert!(
            refusal
                .message
                .contains(&format!("{said} of them are what the session has said")),
            "{id}: {}",
            refusal.message
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_context_that_the_memory_bounds_is_told_so() {
    let config = ServiceConfig {
        model_context: Some(200),
        ..ServiceConfig::default()
    };
    let bench = Bench::with(config, 1, 64);
    let refusal = refused(&bench, long("a", Truncation::Error, &[&"x".repeat(120)])).await;
    assert_eq!(refusal.code, ErrorCode::ContextOverflow);
    assert!(
        refusal
            .message
            .contains("the node's memory for keys and values (runtime.kv_memory) holds 100;"),
        "{}",
        refusal.message
    );
}

#[tokio::test]
async fn a_truncated_prompt_is_the_same_after_a_crash() {
    let folder = tempfile::tempdir().unwrap();
    let text = (0..40).fold(String::new(), |text, n| text + &format!("{n} "));
    let mut asked = long("a", Truncation::Middle, &[&text]);
    asked.progress = true;
    let mut bench = Bench::durable(folder.path(), 1, LastEnd::Innocent);
    bench.service.submit(asked).await.unwrap();
    let (first, sink) = bench.asked().await;
    assert_eq!(first.prompt.len(), 90);
    bench.service.close_store().await;
    drop((bench, sink));
    let mut bench = Bench::durable(folder.path(), 1, LastEnd::Innocent);
    let (again, sink) = bench.asked().await;
    assert_eq!(again.prompt, first.prompt);
    sink.prompt(PromptProgress { done: 5, total: 90 });
    let chunk = bench.body().await;
    assert!(
        matches!(
            chunk,
            ReplyBody::Chunk {
                progress: Some(PromptProgress { done: 5, total: 90 }),
                ..
            }
        ),
        "{chunk:?}"
    );
    sink.finish(summary(Finish::Stop, 1));
    assert_eq!(answer(&mut bench).await.left_out_tokens, text.len() - 90);
    bench.service.close_store().await;
    drop(bench);
    // So it is told after the outcome was stored.
    let mut bench = Bench::durable(folder.path(), 1, LastEnd::Innocent);
    assert_eq!(answer(&mut bench).await.left_out_tokens, text.len() - 90);
}

/// The chunks of a job whose prompt of 1,000 tokens comes in parts of 50, every 20 ms, then two pieces of text.
async fn chunks_of(stream: bool, progress: bool) -> Vec<(u32, String, Option<usize>)> {
    let mut bench = Bench::new();
    let asked = NewJob {
        stream,
        progress,
        ..job("a")
    };
    bench.service.submit(asked).await.unwrap();
    let (_request, sink) = bench.asked().await;
    for part in 1..=20 {
        sink.prompt(PromptProgress {
            done: part * 50,
            total: 1000,
        });
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    sink.text("one ");
    tokio::time::sleep(Duration::from_millis(200)).await;
    sink.text("two");
    settle().await;
    sink.finish(summary(Finish::Stop, 2));
    let mut chunks = Vec::new();
    loop {
        match bench.body().await {
            ReplyBody::Chunk {
                attempt: 1,
                seq,
                delta,
                progress,
            } => {
                assert!(progress.is_none_or(|progress| progress.total == 1000));
                chunks.push((seq, delta, progress.map(|progress| progress.done)));
            }
            ReplyBody::Final(answer) => {
                assert_eq!(answer.text, "one two");
                return chunks;
            }
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn progress_comes_at_intervals_before_the_text_to_those_that_ask() {
    for (stream, progress) in [(false, false), (true, false), (false, true), (true, true)] {
        let chunks = chunks_of(stream, progress).await;
        let case = format!("stream {stream}, progress {progress}: {chunks:?}");
        assert!(
            chunks
                .iter()
                .enumerate()
                .all(|(n, (seq, ..))| *seq == u32::try_from(n).unwrap()),
            "{case}"
        );
        let text: String = chunks.iter().map(|(_, delta, _)| delta.as_str()).collect();
        assert_eq!(text, if stream { "one two" } else { "" }, "{case}");
        let done: Vec<usize> = chunks.iter().filter_map(|(.., done)| *done).collect();
        if progress {
            // The first at once, then about ten a second for 400 ms.
            assert!(
                done.first() == Some(&50) && (4..=6).contains(&done.len()),
                "{case}"
            );
            assert!(done.is_sorted(), "{case}");
        } else {
            assert!(done.is_empty(), "{case}");
        }
        let first_text = chunks.iter().position(|(_, delta, _)| !delta.is_empty());
        if let Some(first_text) = first_text {
            assert!(
                chunks[first_text..].iter().all(|(.., done)| done.is_none()),
                "{case}"
            );
        }
        assert!(
            chunks
                .iter()
                .all(|(_, delta, done)| delta.is_empty() == done.is_some()),
            "{case}"
        );
    }
}

/// A request with a prompt of 500 tokens, this letter, that is to be answered in time.
fn hurried(id: &str, letter: &str, seconds: u64) -> NewJob {
    let mut job = long(id, Truncation::Error, &[&letter.repeat(500)]);
    job.deadline = Some(Duration::from_secs(seconds));
    job
}

/// The end of a prompt that was computed in runs of 30 s in all.
fn computed(prompt_tokens: usize, cached_tokens: usize) -> Summary {
    Summary {
        prompt_tokens,
        cached_tokens,
        // With the runs of others and pauses.
        prefill: Duration::from_secs(90),
        prefill_runs: PrefillRuns {
            tokens: prompt_tokens - cached_tokens,
            end: prompt_tokens,
            time: Duration::from_secs(30),
        },
        ..summary(Finish::Stop, 1)
    }
}

#[tokio::test(start_paused = true)]
async fn a_prompt_that_can_not_meet_its_deadline_is_refused_once_the_speed_is_known() {
    let mut bench = Bench::with_context(2000);
    // Nothing was measured yet, and then only of few tokens, and of a prompt that was mostly cached: then 10 tokens a second.
    for (id, prompt_tokens, cached_tokens) in [("a", 10, 0), ("b", 500, 400), ("c", 300, 0)] {
        bench.service.submit(hurried(id, id, 1)).await.unwrap();
        let (request, sink) = bench.asked().await;
        assert_eq!(request.prompt.len(), 500);
        sink.finish(computed(prompt_tokens, cached_tokens));
        answer(&mut bench).await;
    }
    // However often it is refused, and though others began like it: this engine holds nothing of them.
    for letter in ["d", "c", "a"].repeat(20) {
        let refusal = refused(&bench, hurried("d", letter, 24)).await;
        assert_eq!((refusal.code, refusal.retry_after), (ErrorCode::Busy, None));
        assert_eq!(
            refusal.message,
            "computing the prompt of 500 tokens (500 of them not in the prefix cache) takes about 50.0 s on this node, and \
             24.0 s are left to the deadline; send it with more time, or a shorter one"
        );
    }
    let hopeless = NewJob {
        deadline: Some(Duration::from_millis(20)),
        ..hurried("d", "d", 1)
    };
    let refusal = refused(&bench, hopeless).await;
    assert!(
        refusal
            .message
            .contains("about 50.00 s on this node, and 0.02 s are left"),
        "{}",
        refusal.message
    );
    // The same request may be sent again with more time.
    bench.service.submit(hurried("d", "d", 26)).await.unwrap();
    bench.asked().await;
}

#[tokio::test(start_paused = true)]
async fn a_late_prompt_is_accepted_where_nothing_was_measured_for_ten_minutes() {
    let mut bench = Bench::with_context(2000);
    // When a prompt of so many tokens is measured; longer ones say nothing about those of 500.
    let prompts = [(0, 300), (20, 900), (30, 450), (40, 550)];
    let mut accepted = Vec::new();
    for minute in 0..45 {
        let id = minute.to_string();
        if let Some((_, tokens)) = prompts.iter().find(|(at, _)| *at == minute) {
            bench.service.submit(hurried(&id, "m", 500)).await.unwrap();
            let (_request, sink) = bench.asked().await;
            sink.finish(computed(*tokens, 0));
            answer(&mut bench).await;
        }
        let late = hurried(&format!("late{id}"), "l", 1);
        if bench.service.submit(late).await.is_ok() {
            accepted.push(minute);
            let (_request, sink) = bench.asked().await;
            sink.finish(summary(Finish::Cancelled, 0));
            answer(&mut bench).await;
        }
        tokio::time::sleep(Duration::from_mins(1)).await;
    }
    assert_eq!(accepted, [10, 20, 40]);
}
