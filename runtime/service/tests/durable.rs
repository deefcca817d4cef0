//! What a store keeps, and what a process does with what another one left.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use phi_edge_engine::Finish;
use phi_edge_service::{
    EngineCommand, ErrorCode, LastEnd, NewJob, Quota, Receipt, Refusal, Reply, ReplyAddress, ReplyBody,
    ServiceConfig, Sink, Store, StoreConfig, StoreError, TraceParent,
};
use proptest::prelude::*;
use support::{Bench, job, key, summary};
use tempfile::TempDir;

const FILE: &str = "phi-edge.db";

/// The receipt of a message that has the packet id, and content of its own.
fn receipt(packet_id: u16) -> Receipt {
    let mut digest = [0; 32];
    digest[..2].copy_from_slice(&packet_id.to_le_bytes());
    Receipt { packet_id, digest }
}

/// What a crash at this moment would leave on the disk.
fn image(folder: &Path) -> TempDir {
    let copy = tempfile::tempdir().unwrap();
    for name in [FILE, "phi-edge.db-wal"] {
        if folder.join(name).exists() {
            std::fs::copy(folder.join(name), copy.path().join(name)).unwrap();
        }
    }
    copy
}

/// The same once the disk says that so many jobs run: a start is written without anybody waiting for it.
async fn image_while_running(folder: &Path, jobs: u32) -> TempDir {
    loop {
        let image = image(folder);
        let connection = rusqlite::Connection::open(image.path().join(FILE)).unwrap();
        let running: u32 = connection
            .query_row("SELECT count(*) FROM jobs WHERE running = 1", [], |row| {
                row.get(0)
            })
            .unwrap();
        drop(connection);
        if running == jobs {
            return image;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

fn reply_id(reply: &Reply) -> String {
    match &reply.body {
        ReplyBody::Final(answer) => answer.reply_id.clone(),
        ReplyBody::Error(refusal) => refusal.reply_id.clone(),
        other => panic!("not an outcome: {other:?}"),
    }
}

#[tokio::test]
async fn an_accepted_job_goes_on_after_a_crash() {
    let folder = tempfile::tempdir().unwrap();
    let mut bench = Bench::durable(folder.path(), 1, LastEnd::Innocent);
    let mut asked = job("a");
    asked.sampling.seed = 4711;
    asked.stream = true;
    let trace = TraceParent::parse("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01");
    asked.reply.traceparent.clone_from(&trace);
    bench.service.submit(asked).await.unwrap();
    let (first, sink) = bench.asked().await;
    let left = image_while_running(folder.path(), 1).await;
    drop(sink);

    let mut bench = Bench::durable(left.path(), 1, LastEnd::Innocent);
    let (again, sink) = bench.asked().await;
    assert_eq!((again.prompt, again.sampling.seed), (first.prompt, 4711));
    sink.text("A");
    let chunk = bench.reply().await;
    assert_eq!(chunk.address.traceparent, trace);
    assert!(
        matches!(
            chunk.body,
            ReplyBody::Chunk {
                attempt: 2,
                seq: 0,
                ..
            }
        ),
        "{chunk:?}"
    );
    sink.finish(summary(Finish::Stop, 1));
    let outcome = bench.reply().await;
    assert_eq!(outcome.address, job("a").reply);
    // Not delivered: it comes again, the very same.
    let left = image(left.path());
    let mut bench = Bench::durable(left.path(), 1, LastEnd::Innocent);
    let copy = bench.reply().await;
    assert_eq!(copy, outcome);
    // A repeat is answered with the same, a redelivery with silence.
    bench.service.submit(job("a")).await.unwrap();
    assert_eq!(reply_id(&bench.reply().await), reply_id(&outcome));
    bench.service.submit_redelivered(job("a")).await.unwrap();
    bench.service.delivered(copy.delivery.unwrap());
    bench.service.close_store().await;
    let mut bench = Bench::durable(left.path(), 1, LastEnd::Innocent);
    assert_eq!(
        reply_id(&bench.reply().await),
        reply_id(&outcome),
        "the repeat's copy"
    );
    assert!(bench.is_silent().await);
}

#[tokio::test]
async fn what_a_shutdown_cuts_short_resumes() {
    let folder = tempfile::tempdir().unwrap();
    let mut bench = Bench::durable(folder.path(), 1, LastEnd::Innocent);
    bench.service.submit(job("runs")).await.unwrap();
    bench.service.submit(job("waits")).await.unwrap();
    let (_request, mut sink) = bench.asked().await;
    let service = bench.service.clone();
    let drain = tokio::spawn(async move { service.drain(Duration::ZERO).await });
    sink.cancelled().await;
    sink.finish(summary(Finish::Cancelled, 1));
    drain.await.unwrap();
    assert!(bench.replies.recv().await.is_none(), "nothing is said of either");
    bench.service.close_store().await;

    let mut bench = Bench::durable(folder.path(), 2, LastEnd::Innocent);
    for _ in 0..2 {
        let (_request, sink) = bench.asked().await;
        sink.finish(summary(Finish::Stop, 1));
    }
    let ids = BTreeSet::from([bench.reply().await.key.id, bench.reply().await.key.id]);
    assert_eq!(ids, BTreeSet::from(["runs".to_owned(), "waits".to_owned()]));
}

#[tokio::test]
async fn refusals_of_an_earlier_process_hold_back_no_requests() {
    let folder = tempfile::tempdir().unwrap();
    let bench = Bench::durable(folder.path(), 1, LastEnd::Innocent);
    let refuse = |n: u32| {
        let refusal = Refusal {
            reply_id: format!("refused-{n}"),
            code: ErrorCode::BadRequest,
            message: "prompt".into(),
            retry_after: None,
        };
        let (id, address) = (format!("r{n}"), ReplyAddress::nowhere());
        bench
            .service
            .post(key(&id), address, ReplyBody::Error(refusal), None)
    };
    for n in 0..300 {
        refuse(n).await;
    }
    bench.service.close_store().await;
    let mut bench = Bench::durable(folder.path(), 1, LastEnd::Innocent);
    // More than `limits.queue` outcomes that wait would make it busy.
    bench.service.submit(job("a")).await.unwrap();
    let (_request, sink) = bench.asked().await;
    sink.finish(summary(Finish::Stop, 1));
    let mut said = BTreeSet::new();
    while said.len() < 301 {
        said.insert(bench.reply().await.key);
    }
    assert!(said.contains(&key("a")));
}

#[tokio::test]
async fn a_job_that_its_client_took_back_does_not_resume() {
    let folder = tempfile::tempdir().unwrap();
    let mut bench = Bench::durable(folder.path(), 1, LastEnd::Innocent);
    bench.service.submit(job("a")).await.unwrap();
    let (_request, mut sink) = bench.asked().await;
    assert!(bench.service.cancel(&key("a")));
    sink.cancelled().await;
    sink.finish(summary(Finish::Cancelled, 1));
    let outcome = bench.reply().await;
    bench.service.delivered(outcome.delivery.unwrap());
    bench.service.close_store().await;
    let mut bench = Bench::durable(folder.path(), 1, LastEnd::Innocent);
    assert!(bench.asks_nothing().await);
    assert!(bench.is_silent().await);
}

#[tokio::test]
async fn after_a_crash_suspects_run_alone_and_the_culprit_is_given_up() {
    let folder = tempfile::tempdir().unwrap();
    let mut bench = Bench::durable(folder.path(), 2, LastEnd::Innocent);
    for id in ["a", "b", "c"] {
        bench.service.submit(job(id)).await.unwrap();
    }
    bench.asked().await;
    bench.asked().await;
    // Both ran: each is tried alone, "c" waits until that is over.
    let mut left = image_while_running(folder.path(), 2).await;
    for crash in 0..3 {
        bench = Bench::durable(left.path(), 2, LastEnd::Crashed);
        let (_request, _sink) = bench.asked().await;
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert!(
            bench.commands.try_recv().is_err(),
            "crash {crash}: it has company"
        );
        left = image_while_running(left.path(), 1).await;
    }
    bench = Bench::durable(left.path(), 2, LastEnd::Crashed);
    // In any order: outcomes and dead letters leave by turns.
    let mut replies = [bench.reply().await, bench.reply().await];
    replies.sort_by_key(|reply| matches!(reply.body, ReplyBody::Error(_)));
    let [letter, outcome] = replies;
    match &letter.body {
        ReplyBody::DeadLetter(letter) => {
            assert_eq!(letter.payload, b"question a");
            assert_eq!(letter.topic, "replies/a");
        }
        other => panic!("no dead letter: {other:?}"),
    }
    assert_eq!(outcome.key, key("a"));
    assert!(
        matches!(&outcome.body, ReplyBody::Error(e) if e.code == ErrorCode::Internal),
        "{outcome:?}"
    );
    // The others were not to blame.
    for _ in 0..2 {
        let (_request, sink) = bench.asked().await;
        sink.finish(summary(Finish::Stop, 1));
        assert!(matches!(bench.reply().await.body, ReplyBody::Final(_)));
    }
}

#[tokio::test]
async fn a_kill_from_outside_is_nobodys_fault() {
    let mut left = tempfile::tempdir().unwrap();
    let mut bench = Bench::durable(left.path(), 1, LastEnd::Innocent);
    bench.service.submit(job("a")).await.unwrap();
    for _ in 0..5 {
        bench.asked().await;
        left = image_while_running(left.path(), 1).await;
        bench = Bench::durable(left.path(), 1, LastEnd::Innocent);
    }
    let (_request, sink) = bench.asked().await;
    sink.finish(summary(Finish::Stop, 1));
    assert!(matches!(bench.reply().await.body, ReplyBody::Final(_)));
}

#[tokio::test]
async fn the_deadline_goes_on_while_the_process_is_down() {
    let folder = tempfile::tempdir().unwrap();
    let bench = Bench::durable(folder.path(), 1, LastEnd::Innocent);
    let mut asked = job("a");
    asked.deadline = Some(Duration::from_millis(300));
    bench.service.submit(asked).await.unwrap();
    let left = image(folder.path());
    tokio::time::sleep(Duration::from_millis(400)).await;
    let mut bench = Bench::durable(left.path(), 1, LastEnd::Innocent);
    assert_eq!(bench.error().await.code, ErrorCode::Expired);
    assert!(
        bench.commands.try_recv().is_err(),
        "an expired job is never started"
    );
}

#[tokio::test]
async fn a_refusal_is_not_said_twice() {
    let folder = tempfile::tempdir().unwrap();
    let mut bench = Bench::durable(folder.path(), 1, LastEnd::Innocent);
    let receipt = receipt(9);
    let refusal = bench.service.refusal(ErrorCode::Busy, "full");
    let address = job("a").reply;
    bench
        .service
        .post(key("a"), address, ReplyBody::Error(refusal), Some(receipt))
        .await;
    let said = bench.reply().await;
    bench.service.delivered(said.delivery.unwrap());
    bench.service.close_store().await;
    let mut bench = Bench::durable(folder.path(), 1, LastEnd::Innocent);
    assert!(bench.service.is_redelivery(&receipt));
    let mut again = job("a");
    again.receipt = Some(receipt);
    bench.service.submit_redelivered(again.clone()).await.unwrap();
    assert!(bench.asks_nothing().await);
    // The client itself may ask again, and is served now.
    bench.service.submit(again).await.unwrap();
    bench.asked().await;
}

#[tokio::test]
async fn a_repeat_is_answered_even_if_the_broker_delivers_it_again() {
    let folder = tempfile::tempdir().unwrap();
    let mut bench = Bench::durable(folder.path(), 1, LastEnd::Innocent);
    let asked = |n| NewJob {
        receipt: Some(receipt(n)),
        ..job("a")
    };
    bench.service.submit(asked(1)).await.unwrap();
    let (_, sink) = bench.asked().await;
    sink.finish(summary(Finish::Stop, 1));
    let said = bench.reply().await;
    bench.service.delivered(said.delivery.unwrap());
    bench.service.submit_redelivered(asked(1)).await.unwrap();
    assert!(bench.is_silent().await, "the request itself");
    // The client's own repeat, of which the first delivery was lost with the connection.
    bench.service.submit_redelivered(asked(2)).await.unwrap();
    let again = bench.reply().await;
    assert_eq!(reply_id(&again), reply_id(&said));
    bench.service.delivered(again.delivery.unwrap());
    bench.service.submit_redelivered(asked(2)).await.unwrap();
    assert!(bench.is_silent().await, "the repeat");
    bench.service.close_store().await;
    drop(bench);

    let mut bench = Bench::durable(folder.path(), 1, LastEnd::Innocent);
    bench.service.submit_redelivered(asked(1)).await.unwrap();
    assert!(bench.is_silent().await, "the request, by another process");
    bench.service.submit_redelivered(asked(2)).await.unwrap();
    assert!(bench.is_silent().await, "the repeat, by another process");
}

#[tokio::test]
async fn a_redelivery_is_known_however_much_came_since_until_the_session_is_lost() {
    let folder = tempfile::tempdir().unwrap();
    let bench = Bench::durable(folder.path(), 1, LastEnd::Innocent);
    // Many more than the broker may have had under way at once by its own word.
    for n in 1..=20_000 {
        bench.service.dismiss(Some(receipt(n)));
    }
    bench.service.close_store().await;
    drop(bench);
    let bench = Bench::durable(folder.path(), 1, LastEnd::Crashed);
    let known = (1..=20_000).filter(|n| bench.service.is_redelivery(&receipt(*n)));
    assert_eq!(known.count(), 20_000);
    let other = Receipt {
        digest: [1; 32],
        ..receipt(7)
    };
    assert!(!bench.service.is_redelivery(&other));
    bench.service.forget_receipts();
    assert!(!bench.service.is_redelivery(&receipt(7)));
    bench.service.close_store().await;
    drop(bench);
    let bench = Bench::durable(folder.path(), 1, LastEnd::Innocent);
    assert!(!bench.service.is_redelivery(&receipt(7)));
}

#[tokio::test]
async fn receipts_of_the_version_before_are_taken_over() {
    let folder = tempfile::tempdir().unwrap();
    let bench = Bench::durable(folder.path(), 1, LastEnd::Innocent);
    bench.service.close_store().await;
    drop(bench);
    // As version 2 of the schema had it.
    let connection = rusqlite::Connection::open(folder.path().join(FILE)).unwrap();
    connection
        .execute_batch(
            "DROP TABLE receipts; DROP TABLE former_receipts; DROP TABLE blobs; DROP TABLE job_blobs;
             CREATE TABLE refused (number INTEGER PRIMARY KEY, receipt BLOB NOT NULL);
             CREATE TABLE rule_receipts (number INTEGER PRIMARY KEY, receipt BLOB NOT NULL);
             PRAGMA user_version = 2;",
        )
        .unwrap();
    for (table, n) in [("refused", 1), ("rule_receipts", 2), ("rule_receipts", 3)] {
        let insert = format!("INSERT INTO {table} (receipt) VALUES (?1)");
        connection.execute(&insert, [receipt(n).digest]).unwrap();
    }
    drop(connection);
    let bench = Bench::durable(folder.path(), 1, LastEnd::Innocent);
    for n in 1..=3 {
        assert!(bench.service.is_redelivery(&receipt(n)), "{n}");
    }
    assert!(!bench.service.is_redelivery(&receipt(4)));
}

#[tokio::test]
async fn the_links_note_outlives_the_process() {
    let folder = tempfile::tempdir().unwrap();
    let bench = Bench::durable(folder.path(), 1, LastEnd::Innocent);
    assert_eq!(bench.service.link_note(), None);
    for note in ["first", "second"] {
        bench.service.note_link(note.to_owned()).unwrap().wait().await;
    }
    bench.service.close_store().await;
    drop(bench);
    let bench = Bench::durable(folder.path(), 1, LastEnd::Crashed);
    assert_eq!(bench.service.link_note().as_deref(), Some("second"));
}

#[tokio::test]
async fn a_client_has_its_budget() {
    let config = ServiceConfig {
        quota: Quota {
            requests: Some(2),
            tokens: None,
        },
        ..ServiceConfig::default()
    };
    let bench = Bench::with(config, 1, 64);
    bench.service.submit(job("a")).await.unwrap();
    bench.service.submit(job("b")).await.unwrap();
    let refusal = bench.service.submit(job("c")).await.unwrap_err();
    assert_eq!(refusal.code, ErrorCode::Busy);
    assert!(
        refusal.message.contains("limits.client_requests_per_minute"),
        "{refusal}"
    );
    assert!(refusal.retry_after.unwrap() <= Duration::from_secs(30));
    let mut other = job("d");
    other.key.client = Some("other".into());
    bench.service.submit(other).await.unwrap();
}

#[tokio::test]
async fn a_job_whose_images_are_lost_ends_with_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let bench = Bench::durable(folder.path(), 1, LastEnd::Innocent);
    bench.service.submit(job("a")).await.unwrap();
    let left = image(folder.path());
    let connection = rusqlite::Connection::open(left.path().join(FILE)).unwrap();
    let changed = connection.execute("UPDATE jobs SET request = json_set(request, '$.images', 1)", []);
    assert_eq!(changed, Ok(1));
    drop(connection);
    let mut bench = Bench::durable(left.path(), 1, LastEnd::Innocent);
    let refusal = bench.error().await;
    assert_eq!(refusal.code, ErrorCode::Internal);
    assert!(refusal.message.contains("images are lost"), "{}", refusal.message);
}

#[tokio::test]
async fn the_files_are_private() {
    use std::os::unix::fs::PermissionsExt as _;
    let parent = tempfile::tempdir().unwrap();
    let folder = parent.path().join("store");
    let bench = Bench::durable(&folder, 1, LastEnd::Innocent);
    bench.service.submit(job("a")).await.unwrap();
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&folder), 0o700);
    for entry in std::fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        assert_eq!(mode(&path), 0o600, "{}", path.display());
    }
}

fn open(folder: &Path) -> Result<Store, StoreError> {
    Store::open(
        StoreConfig {
            folder: folder.to_owned(),
            max_bytes: 1 << 20,
            memory_fallback: false,
        },
        LastEnd::Innocent,
    )
}

#[tokio::test]
async fn a_file_that_becomes_readable_late_adds_to_what_came_meanwhile() {
    let folder = tempfile::tempdir().unwrap();
    let mut bench = Bench::durable(folder.path(), 1, LastEnd::Innocent);
    let refuse = async |bench: &mut Bench, id: &str| {
        let refusal = bench.service.refusal(ErrorCode::Busy, "full");
        let address = job(id).reply;
        bench
            .service
            .post(key(id), address, ReplyBody::Error(refusal), None)
            .await;
    };
    refuse(&mut bench, "refused").await;
    bench.service.submit(job("a")).await.unwrap();
    let (_, _sink) = bench.asked().await;
    let left = image_while_running(folder.path(), 1).await;

    // Something is in the folder's place at first.
    let place = tempfile::tempdir().unwrap();
    let place = place.path().join("store");
    std::fs::write(&place, "").unwrap();
    let config = StoreConfig {
        folder: place.clone(),
        max_bytes: 1 << 30,
        memory_fallback: true,
    };
    let store = Store::open(config, LastEnd::Crashed).unwrap();
    let mut health = store.health();
    let mut bench = Bench::on(ServiceConfig::default(), 1, 64, Some(store));
    bench.service.submit(job("b")).await.unwrap();
    refuse(&mut bench, "refused meanwhile").await;
    let (_, _sink) = bench.asked().await;
    std::fs::remove_file(&place).unwrap();
    std::fs::rename(left.path(), &place).unwrap();
    health.wait_for(|health| health.failing.is_none()).await.unwrap();

    let (first, second) = (bench.reply().await, bench.reply().await);
    assert_ne!(first.delivery, second.delivery);
    assert_eq!(bench.service.stats().undelivered, 2);
    bench.service.delivered(first.delivery.unwrap());
    assert_eq!(bench.service.stats().undelivered, 1);
    let image = image(&place);
    let connection = rusqlite::Connection::open(image.path().join(FILE)).unwrap();
    let rows: Vec<(String, u32, bool)> = connection
        .prepare("SELECT id, crashes, suspect FROM jobs ORDER BY place")
        .unwrap()
        .query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))
        .unwrap()
        .collect::<Result<_, _>>()
        .unwrap();
    assert_eq!(rows, [("a".to_owned(), 1, true), ("b".to_owned(), 0, false)]);
}

#[tokio::test]
async fn a_newer_file_is_refused_and_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    drop(open(folder.path()).unwrap());
    let connection = rusqlite::Connection::open(folder.path().join(FILE)).unwrap();
    connection.pragma_update(None, "user_version", 99).unwrap();
    drop(connection);
    let error = open(folder.path()).err().unwrap();
    assert!(error.to_string().contains("schema 99"), "{error}");
    assert!(folder.path().join(FILE).exists());
}

#[tokio::test]
async fn two_processes_do_not_share_a_store() {
    let folder = tempfile::tempdir().unwrap();
    let first = open(folder.path()).unwrap();
    let second = open(folder.path()).unwrap();
    let reason = second.health().borrow().failing.clone().unwrap();
    assert!(reason.contains("another phi-edge"), "{reason}");
    drop((first, second));
}

#[tokio::test]
async fn a_file_that_is_no_database_is_set_aside() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join(FILE), vec![7; 10_000]).unwrap();
    let mut bench = Bench::durable(folder.path(), 1, LastEnd::Innocent);
    bench.service.submit(job("a")).await.unwrap();
    bench.asked().await;
    let aside = std::fs::read_dir(folder.path())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .find(|path| path.to_string_lossy().contains("damaged"))
        .unwrap();
    assert_eq!(std::fs::read(aside).unwrap(), vec![7; 10_000]);
}

#[tokio::test]
async fn a_cell_that_can_not_be_read_costs_its_row_alone() {
    for garbage in [
        "request = CAST(x'ff' AS TEXT)",
        "attempts = -1",
        "digest = x'00'",
        "addresses = x'00'",
    ] {
        let folder = tempfile::tempdir().unwrap();
        let bench = Bench::durable(folder.path(), 1, LastEnd::Innocent);
        for id in ["a", "b", "c"] {
            bench.service.submit(job(id)).await.unwrap();
        }
        let left = image(folder.path());
        let connection = rusqlite::Connection::open(left.path().join(FILE)).unwrap();
        let spoilt = format!("UPDATE jobs SET {garbage} WHERE id = 'b'");
        assert_eq!(connection.execute(&spoilt, []).unwrap(), 1, "{garbage}");
        drop(connection);

        let bench = Bench::durable(left.path(), 1, LastEnd::Innocent);
        let known = ["a", "b", "c"].map(|id| bench.service.knows(&key(id)));
        assert_eq!(known, [true, false, true], "{garbage}");
        bench.service.submit(job("b")).await.unwrap();
    }
}

#[derive(Debug, Clone)]
enum Op {
    Submit(u8),
    Redeliver(u8),
    Cancel(u8),
    Finish,
    Take,
    Deliver,
    Crash,
    Restart,
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => (0..12_u8).prop_map(Op::Submit),
        1 => (0..12_u8).prop_map(Op::Redeliver),
        1 => (0..12_u8).prop_map(Op::Cancel),
        3 => Just(Op::Finish),
        3 => Just(Op::Take),
        2 => Just(Op::Deliver),
        1 => Just(Op::Crash),
        1 => Just(Op::Restart),
    ]
}

/// The world outside the process: what it promised and what it said.
#[derive(Default)]
struct World {
    accepted: BTreeSet<String>,
    said: BTreeMap<String, BTreeSet<String>>,
    undelivered: Vec<Reply>,
}

impl World {
    fn hear(&mut self, reply: Reply) {
        if !matches!(reply.body, ReplyBody::Chunk { .. }) {
            self.said
                .entry(reply.key.id.clone())
                .or_default()
                .insert(reply_id(&reply));
            self.undelivered.push(reply);
        }
    }
}

async fn settle() {
    tokio::time::sleep(Duration::from_millis(3)).await;
}

async fn live(ops: Vec<Op>) {
    let mut folder = tempfile::tempdir().unwrap();
    let mut bench = Bench::durable(folder.path(), 2, LastEnd::Innocent);
    let mut world = World::default();
    let mut sinks: Vec<Sink> = Vec::new();
    for op in ops {
        match op {
            Op::Submit(n) => {
                let id = n.to_string();
                if bench.service.submit(job(&id)).await.is_ok() {
                    world.accepted.insert(id);
                }
            }
            Op::Redeliver(n) => {
                let id = n.to_string();
                if bench.service.submit_redelivered(job(&id)).await.is_ok() {
                    world.accepted.insert(id);
                }
            }
            Op::Cancel(n) => {
                bench.service.cancel(&key(&n.to_string()));
            }
            Op::Finish => {
                settle().await;
                while let Ok(EngineCommand::Generate { sink, .. }) = bench.commands.try_recv() {
                    sinks.push(sink);
                }
                if let Some(sink) = sinks.pop() {
                    let finish = if sink.is_cancelled() {
                        Finish::Cancelled
                    } else {
                        Finish::Stop
                    };
                    sink.finish(summary(finish, 1));
                }
            }
            Op::Take => {
                settle().await;
                while let Ok(reply) = bench.replies.try_recv() {
                    world.hear(reply);
                }
            }
            Op::Deliver => {
                if let Some(reply) = world.undelivered.pop() {
                    bench.service.delivered(reply.delivery.unwrap());
                }
            }
            Op::Crash | Op::Restart => {
                if matches!(op, Op::Restart) {
                    bench.service.close_store().await;
                }
                let left = image(folder.path());
                sinks.clear();
                world.undelivered.clear();
                bench = Bench::durable(left.path(), 2, LastEnd::Innocent);
                folder = left;
            }
        }
    }
    // In the end everything is answered.
    let missing = |world: &World| world.accepted.iter().any(|id| !world.said.contains_key(id));
    for _ in 0..2000 {
        while let Ok(EngineCommand::Generate { sink, .. }) = bench.commands.try_recv() {
            sinks.push(sink);
        }
        for sink in sinks.drain(..) {
            sink.finish(summary(Finish::Stop, 1));
        }
        while let Ok(reply) = bench.replies.try_recv() {
            world.hear(reply);
        }
        if !missing(&world) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert!(!missing(&world), "lost: {:?} of {:?}", world.said, world.accepted);
    for (id, outcomes) in &world.said {
        assert_eq!(outcomes.len(), 1, "{id} has outcomes that differ: {outcomes:?}");
        assert!(world.accepted.contains(id), "{id} was never accepted");
    }
    drop(folder);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    #[test]
    fn nothing_is_lost_and_nothing_is_said_twice(ops in proptest::collection::vec(op(), 1..40)) {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(live(ops));
    }
}
