#![allow(clippy::unwrap_used)]

use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Condvar;
use phi_edge_engine::{Detokenizer, ImageId, TokenId};
use phi_edge_models::{Detail, Role};
use tokio::time::timeout;

use super::*;
use phi_edge_api::RequestImage;

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

/// A text side whose images are files of a width, a height and a mark: `!` is damaged behind its header.
#[derive(Default)]
struct Pictures {
    read: AtomicUsize,
}

impl Prompts for Pictures {
    fn encode(&self, messages: &[Message]) -> Result<Vec<Symbol>, String> {
        assert!(self.read.load(Ordering::SeqCst) > 0, "images are read first");
        Ok(vec![Symbol::Token(TokenId(1)); messages[0].content.len()])
    }

    fn encode_continuation(&self, messages: &[Message]) -> Result<Vec<Symbol>, String> {
        self.encode(messages)
    }

    fn takes_images(&self) -> bool {
        true
    }

    fn image_size(&self, file: &[u8]) -> Result<(u32, u32), String> {
        match file {
            [width, height, ..] => Ok((u32::from(*width), u32::from(*height))),
            _ => Err("no header".to_owned()),
        }
    }

    fn read_image(&self, file: &[u8], detail: Detail) -> Result<ImageInfo, String> {
        self.read.fetch_add(1, Ordering::SeqCst);
        if file.last() == Some(&b'!') {
            return Err("cut short".to_owned());
        }
        Ok(ImageInfo {
            id: ImageId([file[0]; 16]),
            tokens: detail.crops(4),
        })
    }

    fn detokenizer(&self) -> Box<dyn Detokenizer> {
        unreachable!("nothing is answered here")
    }

    fn stop_ids(&self) -> Vec<TokenId> {
        Vec::new()
    }
}

fn with_images(files: &[&[u8]]) -> Encode {
    let images = files.iter().map(|file| RequestImage {
        file: (*file).into(),
        detail: Detail::Low,
    });
    Encode {
        images: ImagesToRead {
            images: images.collect(),
            max_pixels: 1000,
        },
        ..encode("look")
    }
}

#[tokio::test]
async fn images_are_measured_before_any_is_decoded_and_read_before_the_text() {
    let pictures = Arc::new(Pictures::default());
    let prompts: Arc<dyn Prompts> = Arc::clone(&pictures) as _;
    let door = EncodeDoor::open(None);
    for (files, error) in [
        (
            [b"a".as_slice(), b"\x05\x05"],
            NotEncoded::BadImage {
                index: 0,
                message: "no header".to_owned(),
            },
        ),
        (
            [b"\x05\x05", b"\x0B\xFF"],
            NotEncoded::ImageTooLarge {
                index: 1,
                pixels: 2805,
                most: 1000,
            },
        ),
    ] {
        assert_eq!(door.encode(&prompts, with_images(&files)).await, Err(error));
    }
    assert_eq!(pictures.read.load(Ordering::SeqCst), 0);
    let damaged = door.encode(&prompts, with_images(&[b"\x05\x05", b"\x05\x05!"]));
    let error = NotEncoded::BadImage {
        index: 1,
        message: "cut short".to_owned(),
    };
    assert_eq!(damaged.await, Err(error));
    let encoded = door
        .encode(&prompts, with_images(&[b"\x05\x05", b"\x07\x05"]))
        .await;
    let ids: Vec<ImageId> = encoded.unwrap().images.iter().map(|image| image.id).collect();
    assert_eq!(ids, [ImageId([5; 16]), ImageId([7; 16])]);
}

#[tokio::test(start_paused = true)]
async fn images_that_killed_processes_are_given_up_like_texts() {
    let folder = tempfile::tempdir().unwrap();
    let poison = || with_images(&[b"\x05\x05"]);
    let work = poison().images.digest_behind(digest(&poison().messages)).await;
    for alone in [false, true, true, true] {
        let note = Arc::new(Mutex::new(EncodeNote::open(Some(folder.path()))));
        std::mem::forget(encode_note::enter(&note, work, alone));
    }
    let prompts: Arc<dyn Prompts> = Arc::new(Pictures::default());
    let door = EncodeDoor::open(Some(folder.path()));
    let ended = door.encode(&prompts, poison()).await;
    assert!(
        matches!(ended, Err(NotEncoded::GivenUp { deaths: 3, .. })),
        "{ended:?}"
    );
    // The same text with another image is not what they died of.
    let other = door.encode(&prompts, with_images(&[b"\x06\x05"])).await;
    assert!(other.is_ok());
}
