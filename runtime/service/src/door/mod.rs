//! The door: what a request's text costs before anything is promised, and who may pay for it.
//!
//! Whatever comes from outside and takes memory or time by its size goes through here before it is worked on: it is measured
//! first, waits for its share of a budget of memory, and is written down while it is worked on, so that the next process
//! knows what this one died of ([`encode_note`]).

mod budget;

use parking_lot::Mutex;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use phi_edge_engine::TokenId;
use phi_edge_models::{EncodeCost, Message};
use sha2::{Digest as _, Sha256};
use tokio::time::{Instant, sleep_until, timeout_at};

use crate::prompts::{PromptError, Prompts};
use budget::{Lane, MemoryBudget, Share};
use phi_edge_store::encode_note::{self, EncodeNote, Standing, WorkDigest};

/// Memory that encoding may take, in bytes. One text of 1 MiB that can't be cut takes more: it is encoded alone.
const ENCODE_MEMORY: usize = 128 << 20;

/// Bytes of text up to which a request is encoded without being measured before, and does not wait behind larger ones.
const SMALL_TEXT: usize = 16 << 10;

/// Time from the start to the first suspect's turn. What kills processes again and again for another reason does so
/// sooner, or hits the moment in which a suspect is encoded only by chance.
const SUSPECT_DELAY: Duration = Duration::from_secs(5);

/// A budget of memory and work for texts on their way to token ids.
#[derive(Debug)]
pub(crate) struct EncodeDoor {
    budget: MemoryBudget,
    note: Arc<Mutex<EncodeNote>>,
    opened: Instant,
}

/// A text that is to be encoded.
pub(crate) struct Encode {
    pub(crate) messages: Vec<Message>,
    /// Goes on after these ids, if there are any.
    pub(crate) said: Vec<TokenId>,
    /// The most ids, those of `said` among them.
    pub(crate) most: usize,
    /// When it is of no use any more.
    pub(crate) expires: Instant,
}

/// A text that waits for memory.
struct Work<'a> {
    messages: &'a [Message],
    digest: WorkDigest,
    suspect: bool,
    /// The most ids, if the measure can be held against it.
    room: Option<usize>,
}

/// Why there are no ids.
#[derive(Debug, PartialEq)]
pub(crate) enum NotEncoded {
    /// There are more than may be. The number is that of all, with what was said before.
    TooLong { tokens: usize, exact: bool },
    /// The model's text side refuses it.
    Refused(String),
    /// Its time was over before its turn.
    Expired,
    /// Processes died while they encoded it alone.
    GivenUp {
        deaths: u32,
        /// It has not been reported yet.
        first: bool,
        /// What was to be encoded.
        messages: Vec<Message>,
    },
    /// A panic, which is in the log.
    Failed,
}

impl EncodeDoor {
    /// With what an earlier process noted in `folder`, if there is one.
    pub(crate) fn open(folder: Option<&Path>) -> Self {
        Self {
            budget: MemoryBudget::new(ENCODE_MEMORY),
            note: Arc::new(Mutex::new(EncodeNote::open(folder))),
            opened: Instant::now(),
        }
    }

    /// Encodes a text when there is memory for it.
    pub(crate) async fn encode(
        &self,
        prompts: &Arc<dyn Prompts>,
        encode: Encode,
    ) -> Result<Vec<TokenId>, NotEncoded> {
        let Encode {
            messages,
            said,
            most,
            expires,
        } = encode;
        let digest = digest(&messages);
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
        let work = Work {
            messages: &messages,
            digest,
            suspect,
            // What a continuation has at least is not known: the measure is that of a conversation's beginning.
            room: said.is_empty().then_some(most),
        };
        let share = timeout_at(expires, self.share(prompts, &work)).await;
        let share = share.unwrap_or(Err(NotEncoded::Expired))?;
        let (note, prompts) = (Arc::clone(&self.note), Arc::clone(prompts));
        // Long prompts take the tokenizer long: not on a thread that others wait for.
        let encoded = tokio::task::spawn_blocking(move || {
            let _entry = encode_note::enter(&note, digest, suspect);
            let encoded = encode_behind(prompts.as_ref(), said, &messages, most);
            drop(share);
            encoded
        });
        encoded.await.unwrap_or_else(|error| {
            tracing::error!(%error, "encoding a prompt panicked");
            Err(NotEncoded::Failed)
        })
    }

    /// Nothing that is noted from here on tells of a crash: the process ends in good order.
    pub(crate) fn close(&self) {
        self.lock().close();
    }

    /// Waits for memory.
    async fn share(&self, prompts: &Arc<dyn Prompts>, work: &Work<'_>) -> Result<Share, NotEncoded> {
        if work.suspect {
            sleep_until(self.opened + SUSPECT_DELAY).await;
            return Ok(self.budget.all().await);
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
        if let Some(room) = work.room
            && cost.at_least > room
        {
            return Err(NotEncoded::TooLong {
                tokens: cost.at_least,
                exact: false,
            });
        }
        // Nothing is held while this waits: two that wait for each other's memory can't be.
        Ok(self.budget.take(Lane::Large, cost.memory).await)
    }

    fn lock(&self) -> parking_lot::MutexGuard<'_, EncodeNote> {
        self.note.lock()
    }
}

fn encode_behind(
    prompts: &dyn Prompts,
    said: Vec<TokenId>,
    messages: &[Message],
    most: usize,
) -> Result<Vec<TokenId>, NotEncoded> {
    let before = said.len();
    let room = most.saturating_sub(before);
    let ids = if before == 0 {
        prompts.encode_within(messages, room)
    } else {
        prompts.encode_continuation_within(messages, room)
    };
    let ids = ids.map_err(|error| match error {
        PromptError::TooLong { tokens, exact } => NotEncoded::TooLong {
            tokens: tokens + before,
            exact,
        },
        PromptError::Refused(message) => NotEncoded::Refused(message),
    })?;
    if before == 0 {
        return Ok(ids);
    }
    let mut prompt = said;
    prompt.extend(ids);
    Ok(prompt)
}

/// The identity of a text, independent of its sender and id.
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
