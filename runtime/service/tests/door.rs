//! Who is let in: shares of the queue, times that count from arrival, prompts that are too long.

#![allow(clippy::unwrap_used)]

mod support;

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use phi_edge_engine::{Detokenizer, Finish, Interrupt, Symbol, TokenId};
use phi_edge_service::{
    EngineHandle, EngineInfo, ErrorCode, LastEnd, Message, NewJob, Prompts, ReplyBody, Service,
    ServiceConfig, Store, StoreConfig,
};
use support::{Bench, Bytes, job, settle, summary};
use tokio::sync::mpsc;
use tokio::time::Instant;

fn of(client: &str, id: &str) -> NewJob {
    let mut job = job(id);
    job.key.client = Some(client.to_owned());
    job
}

fn small_queue() -> ServiceConfig {
    ServiceConfig {
        queue: 4,
        ..ServiceConfig::default()
    }
}

/// The ids of the next `count` jobs that the engine is given.
async fn served(bench: &mut Bench, count: usize) -> Vec<String> {
    let mut order = Vec::new();
    for _ in 0..count {
        let (request, sink) = bench.asked().await;
        let text: String = request
            .prompt
            .iter()
            .filter_map(|symbol| char::from_u32(symbol.token()?.0))
            .collect();
        order.push(text.replace("question ", ""));
        sink.finish(summary(Finish::Stop, 1));
        bench.reply().await;
    }
    order
}

#[tokio::test(start_paused = true)]
async fn a_flood_keeps_nobody_out_and_goes_first_with_nothing() {
    let mut bench = Bench::with(small_queue(), 1, 64);
    for n in 0..5 {
        bench.service.submit(of("flood", &format!("f{n}"))).await.unwrap();
        settle().await;
    }
    // One runs and four wait: the queue is full, and no other client waits.
    let busy = bench.service.submit(of("flood", "f5")).await.unwrap_err();
    assert_eq!(busy.code, ErrorCode::Busy);
    assert!(
        busy.message.contains("4 requests wait already"),
        "{}",
        busy.message
    );
    bench.service.submit(of("honest", "h0")).await.unwrap();
    bench.service.submit(of("honest", "h1")).await.unwrap();
    // Now it has its share.
    let busy = bench.service.submit(of("honest", "h2")).await.unwrap_err();
    assert_eq!(busy.code, ErrorCode::Busy);
    assert!(busy.retry_after.is_some());
    assert!(
        busy.message
            .contains("2 of them this client's, whose share of limits.queue is 2"),
        "{}",
        busy.message
    );
    let busy = bench.service.submit(of("flood", "f5")).await.unwrap_err();
    assert!(
        busy.message.contains("6 requests of 2 clients"),
        "{}",
        busy.message
    );
    // A third one has its own.
    bench.service.submit(of("third", "t0")).await.unwrap();
    assert!(bench.service.submit(of("third", "t1")).await.is_err());
    // In all there is an end.
    bench.service.submit(of("fourth", "x0")).await.unwrap();
    let busy = bench.service.submit(of("fifth", "y0")).await.unwrap_err();
    assert!(
        busy.message.contains("8 requests wait already"),
        "{}",
        busy.message
    );
    // One after the other of each client; all that was accepted is answered.
    let order = served(&mut bench, 9).await;
    assert_eq!(order, ["f0", "h0", "t0", "x0", "f1", "h1", "f2", "f3", "f4"]);
}

#[tokio::test(start_paused = true)]
async fn alone_a_client_has_the_whole_queue() {
    let mut bench = Bench::with(small_queue(), 1, 64);
    bench.service.submit(of("honest", "h0")).await.unwrap();
    assert_eq!(served(&mut bench, 1).await, ["h0"]);
    for n in 0..5 {
        bench.service.submit(of("only", &format!("o{n}"))).await.unwrap();
        settle().await;
    }
    assert!(bench.service.submit(of("only", "o5")).await.is_err());
    // While there is room a share is no bound.
    assert_eq!(served(&mut bench, 2).await, ["o0", "o1"]);
    settle().await;
    bench.service.submit(of("honest", "h1")).await.unwrap();
    assert_eq!(served(&mut bench, 1).await, ["o2"], "it ran already");
}

#[tokio::test(start_paused = true)]
async fn time_counts_from_arrival() {
    let mut bench = Bench::new();
    let arrived = Instant::now();
    tokio::time::advance(Duration::from_mins(5)).await;
    let mut late = of("c", "late");
    late.deadline = Some(Duration::from_mins(4));
    bench.service.receive(late, false, arrived).await.unwrap();
    assert_eq!(bench.error().await.code, ErrorCode::Expired);
    let mut last = of("c", "last");
    last.deadline = Some(Duration::from_mins(6));
    bench.service.receive(last, false, arrived).await.unwrap();
    let (_request, _sink) = bench.asked().await;
    let mut queued = of("c", "queued");
    queued.deadline = Some(Duration::from_mins(6));
    bench.service.receive(queued, false, arrived).await.unwrap();
    let begun = Instant::now();
    assert_eq!(bench.error().await.code, ErrorCode::Expired);
    let waited = begun.elapsed();
    assert!(
        waited <= Duration::from_secs(61) && waited >= Duration::from_secs(59),
        "{waited:?}"
    );
    // limits.max_deadline is 10 minutes, and counts so too.
    let arrived = Instant::now().checked_sub(Duration::from_mins(10)).unwrap();
    bench
        .service
        .receive(of("c", "old"), false, arrived)
        .await
        .unwrap();
    assert_eq!(bench.error().await.code, ErrorCode::Expired);
}

#[tokio::test(start_paused = true)]
async fn what_does_not_fit_is_told_with_its_number() {
    let bench = Bench::with(
        ServiceConfig {
            max_prompt_tokens: Some(40),
            ..ServiceConfig::default()
        },
        1,
        64,
    );
    let long = |id: &str, bytes: usize| {
        let mut job = of("c", id);
        job.messages[0].content = "x".repeat(bytes);
        job
    };
    let refused = bench.service.submit(long("a", 41)).await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::TooLarge);
    assert!(refused.message.contains("has 41 tokens"), "{}", refused.message);
    let refused = bench.service.submit(long("b", 1 << 20)).await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::ContextOverflow);
    assert!(refused.message.contains("1048576 tokens"), "{}", refused.message);
    bench.service.submit(long("c", 40)).await.unwrap();
}

/// As [`Bytes`], but that it does not come back from a poison before it is let go.
#[derive(Default)]
struct Stuck {
    entered: AtomicUsize,
    open: (Mutex<bool>, Condvar),
}

impl Stuck {
    fn let_go(&self) {
        *self.open.0.lock().unwrap() = true;
        self.open.1.notify_all();
    }
}

impl Prompts for Stuck {
    fn encode(&self, messages: &[Message]) -> Result<Vec<Symbol>, String> {
        if messages[0].content.contains("poison") {
            self.entered.fetch_add(1, Ordering::SeqCst);
            let mut open = self.open.0.lock().unwrap();
            while !*open {
                open = self.open.1.wait(open).unwrap();
            }
        }
        Bytes::default().encode(messages)
    }

    fn encode_continuation(&self, messages: &[Message]) -> Result<Vec<Symbol>, String> {
        self.encode(messages)
    }

    fn detokenizer(&self) -> Box<dyn Detokenizer> {
        Bytes::default().detokenizer()
    }

    fn stop_ids(&self) -> Vec<TokenId> {
        Bytes::default().stop_ids()
    }
}

/// A service on what an earlier one left in `folder`.
fn over(folder: &Path, prompts: Arc<dyn Prompts>) -> Bench {
    let config = StoreConfig {
        folder: folder.to_owned(),
        max_bytes: 1 << 30,
        memory_fallback: false,
    };
    let store = Store::open(config, LastEnd::Innocent).unwrap();
    let (commands_tx, commands) = mpsc::channel(16);
    let (replies_tx, replies) = mpsc::channel(64);
    let interrupt = Interrupt::new();
    let info = EngineInfo {
        context_length: 100,
        memory: None,
        slots: 1,
    };
    let engine = EngineHandle::from_parts(commands_tx, interrupt.clone(), info);
    Bench {
        service: Service::start_with(ServiceConfig::default(), engine, prompts, replies_tx, Some(store)),
        commands,
        replies,
        interrupt,
    }
}

#[tokio::test(start_paused = true)]
async fn a_prompt_that_processes_die_of_is_given_up() {
    let stuck = Arc::new(Stuck::default());
    let mut folder = tempfile::tempdir().unwrap();
    let mut dead = Vec::new();
    // Once with others, as far as anybody knows, and three times alone.
    for deaths in 0..4 {
        let bench = over(folder.path(), Arc::clone(&stuck) as _);
        let service = bench.service.clone();
        let waits = tokio::spawn(async move { service.submit(of("c", "poison")).await });
        tokio::time::advance(Duration::from_secs(6)).await;
        while stuck.entered.load(Ordering::SeqCst) <= deaths {
            tokio::task::yield_now().await;
        }
        // What a process leaves that dies now.
        let left = tempfile::tempdir().unwrap();
        std::fs::copy(folder.path().join("encoding"), left.path().join("encoding")).unwrap();
        dead.push((bench, waits, std::mem::replace(&mut folder, left)));
    }
    // Paused time stands still while a thread is stuck.
    stuck.let_go();
    for (_bench, waits, _folder) in &mut dead {
        waits.await.unwrap().unwrap();
    }
    let mut bench = over(folder.path(), Arc::clone(&stuck) as _);
    for first in [true, false] {
        let refused = bench.service.submit(of("c", "poison")).await.unwrap_err();
        assert_eq!(refused.code, ErrorCode::Internal);
        assert!(refused.message.contains("ended 3 times"), "{}", refused.message);
        if first {
            match bench.body().await {
                ReplyBody::DeadLetter(letter) => {
                    assert_eq!(letter.payload, b"question poison");
                    assert_eq!(letter.id.as_deref(), Some("poison"));
                }
                other => panic!("{other:?}"),
            }
        }
        assert!(bench.is_silent().await);
    }
    assert_eq!(stuck.entered.load(Ordering::SeqCst), 4);
    bench.service.submit(of("c", "other")).await.unwrap();
}
