#![allow(clippy::unwrap_used)]

use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Condvar;
use phi_edge_engine::{Detokenizer, TokenId};
use phi_edge_models::Role;
use tokio::time::timeout;

use super::*;

/// A text side whose encoding ends when the test says so, and that knows how many are at it.
#[derive(Default)]
struct Held {
    encoding: AtomicUsize,
    most: AtomicUsize,
    open: (Mutex<bool>, Condvar),
}

impl Held {
    fn release(&self) {
        *self.open.0.lock() = true;
        self.open.1.notify_all();
    }
}

impl Prompts for Held {
    fn encode(&self, messages: &[Message]) -> Result<Vec<Symbol>, String> {
        let now = self.encoding.fetch_add(1, Ordering::SeqCst) + 1;
        self.most.fetch_max(now, Ordering::SeqCst);
        let mut open = self.open.0.lock();
        while !*open {
            self.open.1.wait(&mut open);
        }
        self.encoding.fetch_sub(1, Ordering::SeqCst);
        Ok(vec![Symbol::Token(TokenId(1)); messages[0].content.len()])
    }

    fn encode_continuation(&self, messages: &[Message]) -> Result<Vec<Symbol>, String> {
        self.encode(messages)
    }

    /// A token is four bytes at most.
    fn cost(&self, messages: &[Message]) -> Result<EncodeCost, String> {
        let bytes = messages[0].content.len();
        Ok(EncodeCost {
            at_least: bytes / 4,
            memory: EncodeCost::memory_for(bytes),
        })
    }

    fn detokenizer(&self) -> Box<dyn Detokenizer> {
        unreachable!("nothing is answered here")
    }

    fn stop_ids(&self) -> Vec<TokenId> {
        Vec::new()
    }
}

fn room(most: usize) -> PromptRoom {
    PromptRoom {
        preferred: most,
        most,
    }
}

fn encode(text: &str) -> Encode {
    Encode {
        messages: vec![Message::new(Role::User, text.to_owned())],
        images: ImagesToRead {
            images: Arc::default(),
            max_pixels: 1000,
        },
        said: Vec::new(),
        room: room(usize::MAX),
        truncation: Truncation::Error,
        expires: Instant::now() + Duration::from_hours(1),
    }
}

async fn until(what: impl Fn() -> bool) {
    for _ in 0..10_000 {
        if what() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    panic!("it never comes");
}

#[tokio::test]
async fn large_texts_wait_for_memory_and_small_ones_do_not_wait_for_them() {
    let held = Arc::new(Held::default());
    let prompts: Arc<dyn Prompts> = Arc::clone(&held) as _;
    let door = Arc::new(EncodeDoor::open(None));
    let large = "x".repeat(1 << 20);
    let spawn = |text: String| {
        let (door, prompts) = (Arc::clone(&door), Arc::clone(&prompts));
        tokio::spawn(async move { door.encode(&prompts, encode(&text)).await })
    };
    let waiting: Vec<_> = (0..8).map(|_| spawn(large.clone())).collect();
    until(|| held.encoding.load(Ordering::SeqCst) == 1).await;
    // Each of them would take more than the whole budget.
    let small = spawn("hello".to_owned());
    until(|| held.encoding.load(Ordering::SeqCst) == 2).await;
    assert_eq!(held.most.load(Ordering::SeqCst), 2);
    // One whose time is over leaves.
    let late = Encode {
        expires: Instant::now() + Duration::from_millis(20),
        ..encode(&large)
    };
    assert_eq!(door.encode(&prompts, late).await, Err(NotEncoded::Expired));
    held.release();
    assert_eq!(small.await.unwrap().unwrap().prompt.ids.len(), 5);
    for large in waiting {
        assert_eq!(large.await.unwrap().unwrap().prompt.ids.len(), 1 << 20);
    }
    assert_eq!(held.most.load(Ordering::SeqCst), 2, "one large and one small");
}

#[tokio::test(start_paused = true)]
async fn a_suspect_is_encoded_alone_and_after_three_deaths_not_at_all() {
    let folder = tempfile::tempdir().unwrap();
    let die = |alone: bool| {
        let note = Arc::new(Mutex::new(EncodeNote::open(Some(folder.path()))));
        std::mem::forget(encode_note::enter(
            &note,
            digest(&encode("poison").messages),
            alone,
        ));
    };
    let held = Arc::new(Held::default());
    held.release();
    let prompts: Arc<dyn Prompts> = Arc::clone(&held) as _;
    for alone in [false, true, true] {
        die(alone);
        let door = EncodeDoor::open(Some(folder.path()));
        let begun = Instant::now();
        let waits = timeout(SUSPECT_DELAY / 2, door.encode(&prompts, encode("poison"))).await;
        assert!(waits.is_err(), "not yet");
        assert_eq!(
            door.encode(&prompts, encode("other"))
                .await
                .unwrap()
                .prompt
                .ids
                .len(),
            5
        );
        assert!(begun.elapsed() < SUSPECT_DELAY, "others do not wait");
        // What is encoded alone waits for all others.
        let other = door.budget.take(Lane::Small, 1).await;
        let suspect = timeout(SUSPECT_DELAY * 2, door.encode(&prompts, encode("poison"))).await;
        assert!(suspect.is_err());
        drop(other);
    }
    die(true);
    let door = EncodeDoor::open(Some(folder.path()));
    for first in [true, false] {
        let given_up = door.encode(&prompts, encode("poison")).await;
        let expected = NotEncoded::GivenUp {
            deaths: 3,
            first,
            messages: encode("poison").messages,
        };
        assert_eq!(given_up, Err(expected));
    }
}

#[tokio::test(start_paused = true)]
async fn a_suspect_that_is_encoded_is_acquitted() {
    let folder = tempfile::tempdir().unwrap();
    let note = Arc::new(Mutex::new(EncodeNote::open(Some(folder.path()))));
    std::mem::forget(encode_note::enter(
        &note,
        digest(&encode("innocent").messages),
        false,
    ));
    let held = Arc::new(Held::default());
    held.release();
    let prompts: Arc<dyn Prompts> = Arc::clone(&held) as _;
    let door = EncodeDoor::open(Some(folder.path()));
    let begun = Instant::now();
    assert!(door.encode(&prompts, encode("innocent")).await.is_ok());
    assert!(begun.elapsed() >= SUSPECT_DELAY);
    let again = Instant::now();
    assert!(door.encode(&prompts, encode("innocent")).await.is_ok());
    assert_eq!(again.elapsed(), Duration::ZERO);
    let next = EncodeDoor::open(Some(folder.path()));
    assert_eq!(
        next.lock().standing(&digest(&encode("innocent").messages)),
        Standing::Clear
    );
}

#[tokio::test]
async fn what_is_surely_too_long_is_not_encoded() {
    let held = Arc::new(Held::default());
    let prompts: Arc<dyn Prompts> = Arc::clone(&held) as _;
    let door = EncodeDoor::open(None);
    // Nor truncated, where no part of it can be encoded by itself within the budget.
    for truncation in [Truncation::Error, Truncation::Middle, Truncation::OldestMessages] {
        let long = Encode {
            room: room(1000),
            truncation,
            ..encode(&"x".repeat(1 << 20))
        };
        let tokens = 1 << 18;
        let too_long = match truncation {
            Truncation::Error => NotEncoded::TooLong { tokens, exact: false },
            _ => NotEncoded::Uncuttable {
                tokens,
                memory: EncodeCost::memory_for(1 << 20) + (TRUNCATION_MEMORY << 20),
            },
        };
        assert_eq!(door.encode(&prompts, long).await, Err(too_long));
    }
    assert_eq!(held.most.load(Ordering::SeqCst), 0);
}
