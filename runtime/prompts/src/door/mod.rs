//! The admission of texts to encoding: a measure of their cost, a budget of memory, and a note for the case of a crash.
//!
//! Images are read here too, before the text that names them is encoded: their headers first, then their pixels one by one.
//! Every text from outside passes here before it is encoded, which takes memory and time by its size: it is measured first,
//! waits for its share of a budget of memory, and is noted while it is encoded, so that the next process knows what this one
//! died of ([`encode_note`]).

mod budget;
mod image_reading;
mod sheet_drawing;

use parking_lot::Mutex;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use phi_edge_engine::Symbol;
use phi_edge_models::{EncodeCost, ImageInfo, Message, PromptRoom, Truncated, Truncation};
use sha2::{Digest as _, Sha256};
use tokio::time::{Instant, sleep_until, timeout_at};

use crate::interface::{PromptError, Prompts};
use budget::{Lane, MemoryBudget, Share};
pub use image_reading::{DecodeMemory, DecodeShare, ImagesToRead};
use phi_edge_store::encode_note::{self, EncodeNote, Standing, WorkDigest};

/// The memory that encoding may take, in bytes. One text of 1 MiB that can't be cut takes more: it is encoded alone.
pub const ENCODE_MEMORY: usize = 128 << 20;

/// The bytes of text up to which a request is encoded without being measured, and does not wait behind larger ones.
const SMALL_TEXT: usize = 16 << 10;

/// The memory of a truncation for each byte of text, in bytes: all of the text's ids, and the ends of its tokens.
const TRUNCATION_MEMORY: usize = 16;

/// The time from the start to the first suspect's turn. Another cause that kills processes again and again does so
/// sooner, or coincides with the encoding of a suspect only by chance.
const SUSPECT_DELAY: Duration = Duration::from_secs(5);

/// The admission of texts to encoding.
#[derive(Debug)]
pub struct EncodeDoor {
    budget: MemoryBudget,
    note: Arc<Mutex<EncodeNote>>,
    opened: Instant,
}

/// A text to encode.
pub struct Encode {
    /// The messages, with images that are not read.
    pub messages: Vec<Message>,
    /// The images that the messages name.
    pub images: ImagesToRead,
    /// The ids that it continues; empty at a conversation's beginning.
    pub said: Vec<Symbol>,
    /// The maximum numbers of ids, including those of `said`.
    pub room: PromptRoom,
    /// The part that is left out where there are more.
    pub truncation: Truncation,
    /// The time after which its ids are of no use.
    pub expires: Instant,
}

/// A text that is encoded.
#[derive(Debug, PartialEq)]
pub struct Encoded {
    /// The prompt.
    pub prompt: Truncated,
    /// The request's images, in its order.
    pub images: Vec<ImageInfo>,
}

/// A text that waits for memory.
struct Work<'a> {
    messages: &'a [Message],
    digest: WorkDigest,
    suspect: bool,
    /// The maximum number of ids.
    most: usize,
    /// It continues a conversation, for which there is no lower bound: the measure is that of a beginning.
    continues: bool,
    truncation: Truncation,
}

/// The reason why a text was not encoded.
#[derive(Debug, PartialEq)]
pub enum NotEncoded {
    /// It has too many ids.
    TooLong {
        /// The number of all, including those of the conversation before, or a lower bound of it.
        tokens: usize,
        /// Whether `tokens` is the exact number.
        exact: bool,
    },
    /// It has too many ids, and truncating it would take more memory than encoding may take.
    Uncuttable {
        /// A lower bound of the number of its ids.
        tokens: usize,
        /// The memory, in bytes.
        memory: usize,
    },
    /// The model's text side refuses it.
    Refused(String),
    /// It has images, and the model takes none.
    ImagesUnsupported,
    /// An image can't be read.
    BadImage {
        /// Its index in the request.
        index: usize,
        /// One line for the client.
        message: String,
    },
    /// An image has more pixels than the limit.
    ImageTooLarge {
        /// Its index in the request.
        index: usize,
        /// Its pixels.
        pixels: u64,
        /// The limit.
        most: u64,
    },
    /// Its time passed before its turn.
    Expired,
    /// Processes died while they encoded it alone.
    GivenUp {
        /// The number of processes.
        deaths: u32,
        /// Whether this has not been reported yet.
        first: bool,
        /// The messages that were to be encoded.
        messages: Vec<Message>,
    },
    /// Encoding panicked; the panic is in the log.
    Failed,
}

impl EncodeDoor {
    /// Returns a door that takes over the note of an earlier process from `folder`, if there is one.
    pub fn open(folder: Option<&Path>) -> Self {
        Self {
            budget: MemoryBudget::new(ENCODE_MEMORY),
            note: Arc::new(Mutex::new(EncodeNote::open(folder))),
            opened: Instant::now(),
        }
    }

    /// Encodes a text when there is memory for it.
    pub async fn encode(&self, prompts: &Arc<dyn Prompts>, encode: Encode) -> Result<Encoded, NotEncoded> {
        let Encode {
            mut messages,
            images,
            said,
            room,
            truncation,
            expires,
        } = encode;
        let digest = images.digest_behind(digest(&messages)).await;
        let standing = self.lock().standing(&digest);
        if let Standing::GivenUp { deaths, first } = standing {
            self.lock().told(&digest);
            return Err(NotEncoded::GivenUp {
                deaths,
                first,
                messages,
            });
        }
        let suspect = standing == Standing::Suspect;
        let read = timeout_at(expires, self.read_images(prompts, images, digest, suspect)).await;
        let images = read.unwrap_or(Err(NotEncoded::Expired))?;
        for placed in messages.iter_mut().flat_map(|message| &mut message.images) {
            placed.info = images.get(placed.image).copied();
        }
        // Nothing is held while this waits: the pixels are gone.
        let work = Work {
            messages: &messages,
            digest,
            suspect,
            most: room.most,
            continues: !said.is_empty(),
            truncation,
        };
        let share = timeout_at(expires, self.share(prompts, &work)).await;
        let share = share.unwrap_or(Err(NotEncoded::Expired))?;
        let (note, prompts) = (Arc::clone(&self.note), Arc::clone(prompts));
        // A long prompt takes the tokenizer long, and must not block a thread of the runtime.
        let encoded = tokio::task::spawn_blocking(move || {
            let _entry = encode_note::enter(&note, digest, suspect);
            let encoded = if truncation == Truncation::Error {
                let ids = encode_behind(prompts.as_ref(), said, &messages, room.most);
                ids.map(|ids| Truncated { ids, left_out: 0 })
            } else {
                let truncated = prompts.encode_truncated(&said, &messages, truncation, room);
                truncated.map_err(|error| not_encoded(error, 0))
            };
            drop(share);
            encoded
        });
        let encoded = encoded.await.unwrap_or_else(|error| {
            tracing::error!(%error, "encoding a prompt panicked");
            Err(NotEncoded::Failed)
        });
        encoded.map(|prompt| Encoded { prompt, images })
    }

    /// Closes the note: the process ends in good order, and no entry is a trace of a crash any more.
    pub fn close(&self) {
        self.lock().close();
    }

    /// Waits for memory, and returns the share of it.
    async fn share(&self, prompts: &Arc<dyn Prompts>, work: &Work<'_>) -> Result<Share, NotEncoded> {
        if work.suspect {
            return Ok(self.all_after_delay().await);
        }
        let text = work.messages.iter().map(|message| message.content.len()).sum();
        if text <= SMALL_TEXT {
            return Ok(self.budget.take(Lane::Small, EncodeCost::memory_for(text)).await);
        }
        let measuring = EncodeCost::memory_of_measuring(text);
        let share = self.budget.take(Lane::Large, measuring).await;
        let (note, prompts, digest) = (Arc::clone(&self.note), Arc::clone(prompts), work.digest);
        let messages = work.messages.to_vec();
        let cost = tokio::task::spawn_blocking(move || {
            let _entry = encode_note::enter(&note, digest, false);
            let cost = prompts.cost(&messages);
            drop((share, messages));
            cost
        });
        let cost = match cost.await {
            Ok(cost) => cost.map_err(NotEncoded::Refused)?,
            Err(error) => {
                tracing::error!(%error, "measuring a prompt panicked");
                return Err(NotEncoded::Failed);
            }
        };
        let truncates = work.truncation != Truncation::Error;
        let memory = cost.memory.saturating_add(if truncates {
            text.saturating_mul(TRUNCATION_MEMORY)
        } else {
            0
        });
        // What is refused by its measure alone takes no memory. With truncation that is only what could not be cut while it
        // is encoded: a text of a megabyte without a place to cut takes 300.
        let refused = if truncates {
            memory > ENCODE_MEMORY
        } else {
            !work.continues
        };
        if refused && cost.at_least > work.most {
            let tokens = cost.at_least;
            return Err(if truncates {
                NotEncoded::Uncuttable { tokens, memory }
            } else {
                NotEncoded::TooLong { tokens, exact: false }
            });
        }
        // Nothing is held while this waits, so that no two texts wait for each other's memory.
        Ok(self.budget.take(Lane::Large, memory).await)
    }

    /// Waits for a suspect's turn, and returns the whole budget.
    async fn all_after_delay(&self) -> Share {
        sleep_until(self.opened + SUSPECT_DELAY).await;
        self.budget.all().await
    }

    fn lock(&self) -> parking_lot::MutexGuard<'_, EncodeNote> {
        self.note.lock()
    }
}

fn encode_behind(
    prompts: &dyn Prompts,
    said: Vec<Symbol>,
    messages: &[Message],
    most: usize,
) -> Result<Vec<Symbol>, NotEncoded> {
    let before = said.len();
    let room = most.saturating_sub(before);
    let ids = if before == 0 {
        prompts.encode_within(messages, room)
    } else {
        prompts.encode_continuation_within(messages, room)
    };
    let ids = ids.map_err(|error| not_encoded(error, before))?;
    if before == 0 {
        return Ok(ids);
    }
    let mut prompt = said;
    prompt.extend(ids);
    Ok(prompt)
}

/// The error of a text behind `before` ids.
fn not_encoded(error: PromptError, before: usize) -> NotEncoded {
    match error {
        PromptError::TooLong { tokens, exact } => NotEncoded::TooLong {
            tokens: tokens + before,
            exact,
        },
        PromptError::Refused(message) => NotEncoded::Refused(message),
    }
}

/// Returns the digest of a text, independent of its sender and id.
fn digest(messages: &[Message]) -> WorkDigest {
    let mut digest = Sha256::new();
    for message in messages {
        digest.update(message.role.as_str());
        digest.update(message.content.len().to_le_bytes());
        digest.update(&message.content);
    }
    digest.finalize().into()
}

#[cfg(test)]
mod tests;
