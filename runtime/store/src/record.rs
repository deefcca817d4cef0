//! Jobs and messages as the file holds them.
//!
//! The types spell out the field names, so that a change of the domain's types can't change the file unnoticed.

mod address_row;
mod symbol_blob;

use std::time::Duration;

use phi_edge_engine::{Sampling, Symbol};
use serde::{Deserialize, Serialize};

use super::clock::{Moment, wall_ms};
use super::event_row::{EventRow, OutputRow};
use crate::receipt::{ReceiptMark, ReceiptRow};
use phi_edge_api::{Answer, DeadLetter, Refusal, Reply, ReplyBody};
use phi_edge_api::{JobKey, NewJob, Priority, ReplyAddress, Truncation};
use phi_edge_job::{ErrorCode, FinishReason};
use phi_edge_rules::changes::RestoredRules;
use phi_edge_rules::{Published, Time};

pub(super) use address_row::AddressRow;
pub(super) use symbol_blob::{symbols_of_bytes, symbols_to_bytes};

/// The attempts at a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Tries {
    /// The number of starts so far.
    pub attempts: u32,
    /// The number of crashes in which it ran alone.
    pub crashes: u32,
    /// Whether it ran when the process crashed.
    pub suspect: bool,
}

/// An accepted job.
#[derive(Debug, Clone, PartialEq)]
pub struct JobRecord {
    /// The request, without its messages: the prompt has them.
    pub job: NewJob,
    /// The symbols of its prompt.
    pub prompt: Vec<Symbol>,
    /// The number of tokens of the conversation that the prompt does not have.
    pub left_out_tokens: usize,
    /// Its place in the order of arrival.
    pub place: u64,
    /// The attempts at it.
    pub tries: Tries,
    /// The time of its acceptance.
    pub accepted: Moment,
    /// The time of its deadline.
    pub expires: Moment,
}

/// The state that an earlier process left.
#[derive(Debug, Default)]
pub struct Restored {
    /// The jobs, in order of acceptance.
    pub jobs: Vec<RestoredJob>,
    /// Messages that the broker has not acknowledged, in order.
    pub outbox: Vec<Reply>,
    /// The receipts of messages that were handled.
    pub receipts: Vec<ReceiptRow>,
    /// The receipts that an earlier version of the program kept.
    pub former_receipts: Vec<ReceiptMark>,
    /// The link's note.
    pub link_note: Option<String>,
    /// The state of the rules.
    pub rules: RestoredRules,
}

/// A job that an earlier process left.
#[derive(Debug)]
pub struct RestoredJob {
    /// The job.
    pub record: JobRecord,
    /// The addresses that wait for its outcome.
    pub addresses: Vec<ReplyAddress>,
    /// Whether images of it are lost, so that it can't be run.
    pub lost_images: bool,
    /// Its state.
    pub state: RestoredState,
}

/// The state of a restored job.
#[derive(Debug)]
pub enum RestoredState {
    /// It has no outcome, and is to be run.
    Open,
    /// It has its outcome.
    Done {
        /// The outcome.
        body: ReplyBody,
        /// The time until which it is kept for clients that ask again, as [`Moment::up_ms`].
        until_up_ms: i64,
    },
}

#[derive(Serialize, Deserialize)]
pub(super) struct RequestRow {
    max_tokens: usize,
    temperature: f32,
    top_k: usize,
    top_p: f32,
    min_p: f32,
    repetition_penalty: f32,
    seed: u64,
    stop: Vec<String>,
    stream: bool,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    progress: bool,
    #[serde(default, skip_serializing_if = "is_zero")]
    pub(super) left_out_tokens: usize,
    /// The number of its images, whose files are in a table of their own.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub(super) images: usize,
    priority: u8,
    #[serde(skip_serializing_if = "Option::is_none")]
    session: Option<String>,
    /// The receipts of an earlier version of the program; this one keeps them in a table of their own.
    #[serde(default, skip_serializing)]
    pub(super) receipts: Vec<[u8; 32]>,
}

impl RequestRow {
    pub(super) fn of(job: &NewJob, left_out_tokens: usize) -> Self {
        Self {
            receipts: Vec::new(),
            max_tokens: job.max_tokens,
            temperature: job.sampling.temperature,
            top_k: job.sampling.top_k,
            top_p: job.sampling.top_p,
            min_p: job.sampling.min_p,
            repetition_penalty: job.sampling.repetition_penalty,
            seed: job.sampling.seed,
            stop: job.stop.clone(),
            stream: job.stream,
            progress: job.progress,
            left_out_tokens,
            images: job.images.len(),
            priority: job.priority as u8,
            session: job.session.clone(),
        }
    }

    pub(super) fn job(self, key: JobKey, digest: [u8; 32], reply: ReplyAddress) -> NewJob {
        NewJob {
            key,
            body_digest: digest,
            messages: Vec::new(),
            images: Vec::new(),
            max_tokens: self.max_tokens,
            sampling: Sampling {
                temperature: self.temperature,
                top_k: self.top_k,
                top_p: self.top_p,
                min_p: self.min_p,
                repetition_penalty: self.repetition_penalty,
                seed: self.seed,
            },
            stop: self.stop,
            // The prompt is encoded.
            truncation: Truncation::default(),
            stream: self.stream,
            progress: self.progress,
            priority: match self.priority {
                0 => Priority::Background,
                2 => Priority::Interactive,
                _ => Priority::Normal,
            },
            deadline: None,
            session: self.session,
            reply,
            payload_bytes: None,
            receipt: None,
        }
    }
}

/// A message that waits to be delivered.
#[derive(Serialize, Deserialize)]
pub(super) struct MessageRow {
    #[serde(skip_serializing_if = "Option::is_none")]
    client: Option<String>,
    id: String,
    address: AddressRow,
    body: BodyRow,
}

impl MessageRow {
    pub(super) fn of(reply: &Reply) -> Option<Self> {
        Some(Self {
            client: reply.key.client.clone(),
            id: reply.key.id.clone(),
            address: (&reply.address).into(),
            body: BodyRow::of(&reply.body)?,
        })
    }

    pub(super) fn reply(self, delivery: u64) -> Option<Reply> {
        Some(Reply {
            key: JobKey {
                client: self.client,
                id: self.id,
            },
            address: self.address.into(),
            body: self.body.body()?,
            delivery: Some(delivery),
        })
    }
}

#[derive(Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub(super) enum BodyRow {
    Final {
        reply_id: String,
        text: String,
        finish_reason: String,
        prompt_tokens: usize,
        completion_tokens: usize,
        cached_tokens: usize,
        #[serde(default, skip_serializing_if = "is_zero")]
        left_out_tokens: usize,
        #[serde(default, skip_serializing_if = "is_zero")]
        image_tokens: usize,
        queued_ns: u64,
        prefill_ns: u64,
        decode_ns: u64,
        model: String,
    },
    Error {
        reply_id: String,
        code: String,
        message: String,
        #[serde(skip_serializing_if = "Option::is_none")]
        retry_after_ns: Option<u64>,
    },
    DeadLetter {
        reason: String,
        message: String,
        topic: String,
        #[serde(skip_serializing_if = "Option::is_none")]
        id: Option<String>,
        payload: OriginalRow,
        #[serde(default)]
        bytes: usize,
    },
    Event {
        event: Box<EventRow>,
        output: OutputRow,
        /// The time of its expiry, in milliseconds since 1970; `None` in rows of earlier versions.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        expires: Option<i64>,
    },
}

/// The original of a dead letter, as text where it is UTF-8, since numbers take four times the room.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
pub(super) enum OriginalRow {
    Text(String),
    Bytes(Vec<u8>),
}

impl OriginalRow {
    fn of(original: &[u8]) -> Self {
        match std::str::from_utf8(original) {
            Ok(text) => Self::Text(text.to_owned()),
            Err(_) => Self::Bytes(original.to_owned()),
        }
    }

    fn bytes(&self) -> &[u8] {
        match self {
            Self::Text(text) => text.as_bytes(),
            Self::Bytes(bytes) => bytes,
        }
    }
}

impl BodyRow {
    /// Returns `None` for a chunk, which is not stored.
    pub(super) fn of(body: &ReplyBody) -> Option<Self> {
        Some(match body {
            ReplyBody::Chunk { .. } => return None,
            ReplyBody::Final(answer) => Self::Final {
                reply_id: answer.reply_id.clone(),
                text: answer.text.clone(),
                finish_reason: answer.finish_reason.as_str().to_owned(),
                prompt_tokens: answer.prompt_tokens,
                completion_tokens: answer.completion_tokens,
                cached_tokens: answer.cached_tokens,
                left_out_tokens: answer.left_out_tokens,
                image_tokens: answer.image_tokens,
                queued_ns: nanos(answer.queued),
                prefill_ns: nanos(answer.prefill),
                decode_ns: nanos(answer.decode),
                model: answer.model.to_string(),
            },
            ReplyBody::Error(refusal) => Self::Error {
                reply_id: refusal.reply_id.clone(),
                code: refusal.code.as_str().to_owned(),
                message: refusal.message.clone(),
                retry_after_ns: refusal.retry_after.map(nanos),
            },
            ReplyBody::DeadLetter(letter) => Self::DeadLetter {
                reason: letter.reason.clone(),
                message: letter.message.clone(),
                topic: letter.topic.clone(),
                id: letter.id.clone(),
                payload: OriginalRow::of(&letter.payload),
                bytes: letter.bytes,
            },
            ReplyBody::Event(published) => Self::Event {
                event: Box::new(EventRow::of(&published.event)),
                output: OutputRow::of(&published.output),
                expires: published
                    .output
                    .expiry
                    .map(|expiry| Time(wall_ms()).after(expiry).0),
            },
        })
    }

    /// Returns `None` for values that this version does not know.
    pub(super) fn body(self) -> Option<ReplyBody> {
        Some(match self {
            Self::Final {
                reply_id,
                text,
                finish_reason,
                prompt_tokens,
                completion_tokens,
                cached_tokens,
                left_out_tokens,
                image_tokens,
                queued_ns,
                prefill_ns,
                decode_ns,
                model,
            } => ReplyBody::Final(Answer {
                reply_id,
                text,
                finish_reason: FinishReason::from_word(&finish_reason)?,
                prompt_tokens,
                completion_tokens,
                cached_tokens,
                left_out_tokens,
                image_tokens,
                queued: Duration::from_nanos(queued_ns),
                prefill: Duration::from_nanos(prefill_ns),
                decode: Duration::from_nanos(decode_ns),
                model: model.into(),
            }),
            Self::Error {
                reply_id,
                code,
                message,
                retry_after_ns,
            } => ReplyBody::Error(Refusal {
                reply_id,
                code: ErrorCode::from_word(&code)?,
                message,
                retry_after: retry_after_ns.map(Duration::from_nanos),
            }),
            Self::DeadLetter {
                reason,
                message,
                topic,
                id,
                payload,
                bytes,
            } => ReplyBody::DeadLetter(DeadLetter {
                reason,
                message,
                topic,
                id,
                bytes: bytes.max(payload.bytes().len()),
                payload: payload.bytes().to_vec(),
            }),
            Self::Event {
                event,
                output,
                expires,
            } => {
                let mut output = output.output();
                let left = expires.map(|expires| Time(expires).since(Time(wall_ms())));
                // A clock that was set back gives no event more time than it had.
                output.expiry = output.expiry.map(|expiry| left.unwrap_or(expiry).min(expiry));
                ReplyBody::Event(Box::new(Published {
                    event: event.event()?,
                    output,
                }))
            }
        })
    }
}

/// Whether a number is left out of its row, as the rows of earlier versions have none.
#[expect(clippy::trivially_copy_pass_by_ref, reason = "the shape that serde wants")]
fn is_zero(number: &usize) -> bool {
    *number == 0
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
