#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use phi_edge_api::{ErrorCode, NewJob, Priority, Refusal, ReplyAddress, ReplyBody, Sampling, Truncation};
use phi_edge_rules::changes::RuleChange;
use proptest::prelude::*;

use super::*;
use crate::change::{Batch, Change};
use crate::clock::{Clock, Moment};
use crate::file::File;
use crate::record::{JobRecord, Restored, Tries};
use crate::test_changes::keep_message;
use crate::{LastEnd, Store, StoreConfig, schema};

/// An accepted job with images.
fn record(n: u64, images: Vec<RequestImage>) -> JobRecord {
    let moment = Moment { up_ms: 0, wall_ms: 0 };
    JobRecord {
        job: NewJob {
            key: key(n),
            body_digest: [0; 32],
            messages: Vec::new(),
            images,
            max_tokens: 1,
            sampling: Sampling::default(),
            stop: Vec::new(),
            truncation: Truncation::default(),
            stream: false,
            progress: false,
            priority: Priority::Normal,
            deadline: None,
            session: None,
            reply: ReplyAddress::nowhere(),
            payload_bytes: None,
            receipt: None,
        },
        prompt: Vec::new(),
        left_out_tokens: 0,
        place: n,
        tries: Tries::default(),
        accepted: moment,
        expires: moment,
    }
}

fn batch(change: Change) -> Batch {
    Batch {
        number: 1,
        changes: vec![change],
        replaces: false,
        waiting: None,
    }
}

fn open(folder: &std::path::Path) -> (File, Restored) {
    let config = StoreConfig {
        folder: folder.to_owned(),
        max_bytes: u64::MAX,
        memory_fallback: false,
    };
    File::open(&config, &Clock::of_this_process(), LastEnd::Innocent)
        .map_err(|trouble| trouble.to_string())
        .unwrap()
}

/// The change that ends the job `n`.
fn settle(n: u64) -> Batch {
    let body = Box::new(ReplyBody::Error(Refusal {
        reply_id: "r".into(),
        code: ErrorCode::Internal,
        message: "m".into(),
        retry_after: None,
    }));
    let until = Moment {
        up_ms: i64::MAX,
        wall_ms: i64::MAX,
    };
    batch(Change::Settle {
        key: key(n),
        body,
        until,
    })
}

/// The images of a request, and the bytes of the only one.
fn images() -> (Vec<u8>, Vec<RequestImage>) {
    let marker = b"pixels of a gate camera".repeat(900);
    let image = RequestImage {
        file: Arc::from(marker.as_slice()),
        detail: Detail::High,
    };
    (marker, vec![image])
}

/// Whether the beginning of `marker` is in a file of the folder.
fn has(folder: &std::path::Path, marker: &[u8]) -> bool {
    let files: Vec<_> = std::fs::read_dir(folder).unwrap().collect();
    assert!(!files.is_empty());
    files.into_iter().any(|entry| {
        // SQLite may remove its journal meanwhile.
        let bytes = std::fs::read(entry.unwrap().path()).unwrap_or_default();
        bytes.windows(23).any(|part| part == &marker[..23])
    })
}

#[test]
fn images_outlive_a_crash_and_are_overwritten_after_the_outcome() {
    let folder = tempfile::tempdir().unwrap();
    let (marker, images) = images();
    let (mut file, _) = open(folder.path());
    let accept = batch(Change::Accept(Box::new(record(1, images.clone()))));
    assert!(accept.cost() > marker.len() as u64);
    file.write(&[accept])
        .map_err(|trouble| trouble.to_string())
        .unwrap();
    // Without closing it, as a crash does.
    drop(file);
    let (mut file, restored) = open(folder.path());
    assert_eq!(
        restored.jobs.first().map(|job| &job.record.job.images),
        Some(&images)
    );
    let settle = settle(1);
    file.write(&[settle])
        .map_err(|trouble| trouble.to_string())
        .unwrap();
    file.close();
    assert!(!has(folder.path(), &marker));
    let (_file, restored) = open(folder.path());
    assert!(restored.jobs.iter().all(|job| job.record.job.images.is_empty()));
}

#[test]
fn images_are_erased_from_the_journal_of_an_open_file() {
    let folder = tempfile::tempdir().unwrap();
    let (marker, images) = images();
    let (mut file, _) = open(folder.path());
    let write = |file: &mut File, batch| {
        file.write(&[batch])
            .map_err(|trouble| trouble.to_string())
            .unwrap();
    };
    write(&mut file, batch(Change::Accept(Box::new(record(1, Vec::new())))));
    write(&mut file, settle(1));
    assert!(file.erasure_due().is_none(), "there was no picture");
    write(&mut file, batch(Change::Accept(Box::new(record(2, images)))));
    assert!(file.erasure_due().is_none(), "none is deleted");
    write(&mut file, settle(2));
    let due = file.erasure_due().unwrap();
    assert!(due.idle < due.latest);
    assert!(has(folder.path(), &marker), "the journal has it");
    // What a crash leaves at this moment.
    let crashed = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(folder.path()).unwrap().flatten() {
        std::fs::copy(entry.path(), crashed.path().join(entry.file_name())).unwrap();
    }
    assert!(has(crashed.path(), &marker));
    let _open = open(crashed.path());
    assert!(!has(crashed.path(), &marker));
    file.erase();
    assert!(!has(folder.path(), &marker));
    assert!(file.erasure_due().is_none());
}

#[test]
fn pictures_of_windows_are_erased_as_those_of_requests() {
    let folder = tempfile::tempdir().unwrap();
    let (mut file, _) = open(folder.path());
    let change = |file: &mut File, change| {
        file.write(&[batch(Change::Rule(change))])
            .map_err(|trouble| trouble.to_string())
            .unwrap();
        file.erasure_due().is_some()
    };
    assert!(!change(&mut file, keep_message(1, b"21.5")));
    assert!(!change(&mut file, RuleChange::ForgetMessages(vec![1])));
    let marker = b"\xFF\xD8\xFF\xE0 pixels of a gate camera";
    assert!(!change(&mut file, keep_message(2, marker)));
    assert!(has(folder.path(), marker));
    assert!(change(&mut file, RuleChange::ForgetMessages(vec![2])));
    file.erase();
    assert!(!has(folder.path(), marker));
}

/// A store that is idle, and one that never is.
#[test]
fn the_store_erases_images_soon_after_the_outcome() {
    for is_busy in [false, true] {
        let folder = tempfile::tempdir().unwrap();
        let config = StoreConfig {
            folder: folder.path().to_owned(),
            max_bytes: u64::MAX,
            memory_fallback: false,
        };
        let store = Store::open(config, LastEnd::Innocent).unwrap();
        let marker = b"pixels of a gate camera".repeat(900);
        let images = vec![RequestImage {
            file: Arc::from(marker.as_slice()),
            detail: Detail::High,
        }];
        let mut number = 0;
        let mut send = |batch: Batch| {
            number += 1;
            store.send(Batch { number, ..batch });
            let begun = Instant::now();
            while *store.signals().committed.borrow() < number {
                assert!(begun.elapsed() < Duration::from_secs(20));
                std::thread::yield_now();
            }
        };
        send(batch(Change::Accept(Box::new(record(1, images)))));
        assert!(has(folder.path(), &marker));
        send(settle(1));
        let begun = Instant::now();
        while has(folder.path(), &marker) {
            assert!(begun.elapsed() < Duration::from_secs(20), "busy: {is_busy}");
            if is_busy {
                send(batch(Change::LinkNote(String::new())));
            }
        }
    }
}

/// Files in memory, with the tables of the store.
fn tables() -> Connection {
    let mut connection = Connection::open_in_memory().unwrap();
    schema::migrate(&mut connection).unwrap();
    connection
}

fn key(n: u64) -> JobKey {
    JobKey {
        client: None,
        id: n.to_string(),
    }
}

fn add_job(connection: &Connection, n: u64, images: &[RequestImage]) {
    connection
        .execute(
            "INSERT INTO jobs (place, client, id, digest, request, prompt, addresses, accepted_up, accepted_wall,
                 expires_up, expires_wall) VALUES (?1, '', ?2, x'', '', x'', '', 0, 0, 0, 0)",
            params![signed(n), n.to_string()],
        )
        .unwrap();
    add(connection, n, images).unwrap();
}

fn count(connection: &Connection) -> usize {
    connection
        .query_row("SELECT count(*) FROM blobs", [], |row| row.get::<_, i64>(0))
        .map(|count| usize::try_from(count).unwrap())
        .unwrap()
}

fn stored(connection: &Connection) -> StoredImages {
    let mut images = StoredImages::default();
    read(connection, "ASC", &mut images).unwrap();
    images
}

fn image(byte: u8) -> RequestImage {
    RequestImage {
        file: Arc::from([byte; 9]),
        detail: [Detail::Low, Detail::Auto, Detail::High][usize::from(byte % 3)],
    }
}

#[test]
fn a_damaged_file_is_not_given_out() {
    let connection = tables();
    add_job(&connection, 1, &[image(1), image(2)]);
    connection
        .execute("UPDATE blobs SET file = x'00' WHERE file = ?1", [vec![1_u8; 9]])
        .unwrap();
    let mut images = stored(&connection);
    // The second one must not take the place of the first.
    assert_eq!(take(&mut images, 1, 2), None);
}

#[test]
fn what_no_open_job_needs_is_swept() {
    let connection = tables();
    add_job(&connection, 1, &[image(1)]);
    add_job(&connection, 2, &[image(2), image(1)]);
    connection
        .execute_batch("DELETE FROM jobs WHERE place = 2")
        .unwrap();
    connection.execute_batch(SWEEP_BLOBS).unwrap();
    assert_eq!(count(&connection), 1);
    assert_eq!(take(&mut stored(&connection), 1, 1), Some(vec![image(1)]));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// At any time there are exactly the files that jobs need, and each job gets back its own.
    #[test]
    fn files_live_as_long_as_their_jobs(steps in proptest::collection::vec(
        (0..6_u64, proptest::collection::vec(0..5_u8, 0..4)), 1..40,
    )) {
        let connection = tables();
        let mut jobs: BTreeMap<u64, Vec<RequestImage>> = BTreeMap::new();
        for (n, bytes) in steps {
            if jobs.remove(&n).is_some() {
                release(&connection, &key(n)).unwrap();
                connection.execute("DELETE FROM jobs WHERE place = ?1", [signed(n)]).unwrap();
            } else {
                let images: Vec<RequestImage> = bytes.into_iter().map(image).collect();
                add_job(&connection, n, &images);
                jobs.insert(n, images);
            }
            let needed: BTreeSet<&[u8]> = jobs.values().flatten().map(|image| &*image.file).collect();
            prop_assert_eq!(count(&connection), needed.len());
            let mut images = stored(&connection);
            for (n, expected) in &jobs {
                let taken = take(&mut images, *n, expected.len());
                prop_assert_eq!(taken.as_ref(), Some(expected));
            }
            prop_assert!(images.is_empty());
        }
    }
}
