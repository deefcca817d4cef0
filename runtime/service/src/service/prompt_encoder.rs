//! The encoding of prompts within the limits of the model and of the configuration.

use std::fmt::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use phi_edge_engine::Symbol;
use phi_edge_models::{ContactSheet, Message, PromptRoom, Truncation};
use tokio::time::Instant;

use super::ServiceConfig;
use crate::engine_thread::EngineInfo;
use crate::jobs::ledger::Ledger;
use phi_edge_api::{DeadLetter, NewJob, Refusal};
use phi_edge_job::ErrorCode;
use phi_edge_prompts::Prompts;
use phi_edge_prompts::{DecodeMemory, ENCODE_MEMORY, Encode, EncodeDoor, Encoded, ImagesToRead, NotEncoded};

/// The text side of the model, the budget of memory for encoding, and the limits of prompts.
pub(super) struct PromptEncoder {
    prompts: Arc<dyn Prompts>,
    door: EncodeDoor,
    /// The context length, in tokens: the model's, or what the memory for keys and values holds where that is less.
    context_length: usize,
    /// Whether the memory for keys and values bounds the context.
    is_memory_bound: bool,
    /// `limits.max_prompt_tokens`; `usize::MAX` where it is not set.
    max_prompt_tokens: AtomicUsize,
    /// `limits.image_pixels`.
    max_image_pixels: AtomicU64,
}

impl PromptEncoder {
    /// An encoder whose crash note is in `folder`, if there is one.
    pub(super) fn new(
        prompts: Arc<dyn Prompts>,
        folder: Option<&Path>,
        engine: &EngineInfo,
        config: &ServiceConfig,
    ) -> Self {
        Self {
            prompts,
            door: EncodeDoor::open(folder),
            context_length: engine.context_length,
            is_memory_bound: config
                .model_context
                .is_some_and(|context| engine.context_length < context),
            max_prompt_tokens: AtomicUsize::new(config.max_prompt_tokens.unwrap_or(usize::MAX)),
            max_image_pixels: AtomicU64::new(config.image_pixels),
        }
    }

    /// The text side of the model.
    pub(super) fn prompts(&self) -> &Arc<dyn Prompts> {
        &self.prompts
    }

    /// Replaces the limits of prompts, where `None` is no limit, and of an image.
    pub(super) fn set_limits(&self, max_prompt_tokens: Option<usize>, max_image_pixels: u64) {
        let max = max_prompt_tokens.unwrap_or(usize::MAX);
        self.max_prompt_tokens.store(max, Ordering::Relaxed);
        self.max_image_pixels.store(max_image_pixels, Ordering::Relaxed);
    }

    /// Returns the maximum number of pixels of an image.
    fn max_image_pixels(&self) -> u64 {
        self.max_image_pixels.load(Ordering::Relaxed)
    }

    /// Returns the memory for decoding images a second time, for the engine.
    pub(super) fn decode_memory(&self) -> DecodeMemory {
        self.door.decode_memory()
    }

    /// Draws pictures on one sheet.
    ///
    /// # Errors
    /// None of them can be read.
    pub(super) async fn contact_sheet(&self, files: Vec<Arc<[u8]>>) -> Result<ContactSheet, String> {
        self.door.contact_sheet(files, self.max_image_pixels()).await
    }

    /// Returns the maximum number of tokens of a prompt that leaves room for `new_tokens` in the context.
    pub(super) fn max_tokens(&self, new_tokens: usize) -> usize {
        let room = self.context_length.saturating_sub(new_tokens + 1);
        room.min(self.max_prompt_tokens.load(Ordering::Relaxed))
    }

    /// Reads the images of `job`, encodes its messages behind the tokens of their session, and takes the
    /// messages out of it.
    pub(super) async fn encode(
        &self,
        job: &mut NewJob,
        session_tokens: Vec<Symbol>,
        expires: Instant,
    ) -> Result<Encoded, NotEncoded> {
        if !job.images.is_empty() && !self.prompts.takes_images() {
            return Err(NotEncoded::ImagesUnsupported);
        }
        let encode = Encode {
            messages: std::mem::take(&mut job.messages),
            images: ImagesToRead {
                images: job.images.clone().into(),
                max_pixels: self.max_image_pixels(),
            },
            said: session_tokens,
            room: PromptRoom::beside(job.max_tokens, self.context_length).at_most(self.max_tokens(0)),
            truncation: job.truncation,
            expires,
        };
        self.door.encode(&self.prompts, encode).await
    }

    /// Closes the crash note: the process ends in good order.
    pub(super) fn close(&self) {
        self.door.close();
    }

    /// Refuses a job whose prompt is not encoded. `session_length`: the tokens of its session before the prompt. A prompt that
    /// is given up also becomes a dead letter.
    pub(super) fn refuse(
        &self,
        ledger: &mut Ledger,
        job: &NewJob,
        error: NotEncoded,
        session_length: usize,
    ) -> Refusal {
        match error {
            NotEncoded::TooLong { tokens, exact } => {
                let left_out = match job.truncation {
                    Truncation::Error => "",
                    Truncation::OldestMessages => " without all messages that truncation may leave out",
                    Truncation::Middle => " without the middle of its longest message",
                };
                let count = if exact { "" } else { "at least " };
                let length = format!("{count}{tokens} tokens{left_out}");
                self.too_long(ledger, job, (tokens, &length), Some(session_length))
            }
            NotEncoded::Uncuttable { tokens, memory } => {
                let length = format!(
                    "at least {tokens} tokens, and truncating it would take {} MiB of memory where {} are allowed, since \
                     its text has no place to cut",
                    memory.div_ceil(1 << 20),
                    ENCODE_MEMORY >> 20
                );
                self.too_long(ledger, job, (tokens, &length), None)
            }
            NotEncoded::Refused(message) => ledger.refuse(
                ErrorCode::BadRequest,
                format!("messages: the prompt can't be built: {message}"),
            ),
            NotEncoded::ImagesUnsupported => {
                ledger.refuse(ErrorCode::Unsupported, "images: this model takes text alone")
            }
            NotEncoded::BadImage { index, message } => {
                ledger.refuse(ErrorCode::BadRequest, format!("images[{index}]: {message}"))
            }
            NotEncoded::ImageTooLarge { index, pixels, most } => ledger.refuse(
                ErrorCode::TooLarge,
                format!(
                    "images[{index}]: has {pixels} pixels, limits.image_pixels is {most}; send a smaller one"
                ),
            ),
            NotEncoded::Expired => ledger.refuse(
                ErrorCode::Expired,
                "the deadline passed before the request's turn to be encoded came",
            ),
            NotEncoded::Failed => ledger.refuse(ErrorCode::Internal, "the prompt can't be encoded"),
            NotEncoded::GivenUp {
                deaths,
                first,
                messages,
            } => {
                let message = format!(
                    "the service ended {deaths} times while it encoded this prompt alone; it is not encoded again"
                );
                if first {
                    report_given_up(ledger, job, deaths, &message, &messages);
                }
                ledger.refuse(ErrorCode::Internal, message)
            }
        }
    }

    /// The refusal of a prompt that has `tokens`, after truncation what remains; `length` tells the number.
    /// `session_length`: the tokens of its session before it; `None` where no truncation helps.
    fn too_long(
        &self,
        ledger: &mut Ledger,
        job: &NewJob,
        (tokens, length): (usize, &str),
        session_length: Option<usize>,
    ) -> Refusal {
        let context = self.context_length;
        if tokens < context {
            let most = self.max_prompt_tokens.load(Ordering::Relaxed);
            let message = format!("the prompt has {length}, limits.max_prompt_tokens is {most}");
            return ledger.refuse(ErrorCode::TooLarge, message);
        }
        let mut message = format!(
            "the prompt has {length}, and max_tokens asks for {} more; with room for one new token {} {context}",
            job.max_tokens,
            if self.is_memory_bound {
                "the node's memory for keys and values (runtime.kv_memory) holds"
            } else {
                "the context takes"
            }
        );
        match (job.truncation, session_length) {
            (Truncation::Error, Some(0)) => message.push_str(
                "; shorten the prompt, or ask with truncation oldest_messages or middle to leave out a part",
            ),
            // What was said is left out by `oldest_messages` only, and no shorter prompt helps where it fills the context.
            (Truncation::Error | Truncation::Middle, Some(session_length @ 1..)) => {
                let _ = write!(
                    message,
                    "; {session_length} of them are what the session has said so far: begin a new one, or ask with \
                     truncation oldest_messages to leave out its oldest turns"
                );
            }
            (Truncation::OldestMessages, Some(0)) => message.push_str(
                "; shorten the prompt, or ask with truncation middle to leave out a part of its longest message",
            ),
            (Truncation::OldestMessages | Truncation::Middle, Some(_)) | (_, None) => {
                message.push_str("; shorten the prompt");
            }
        }
        ledger.refuse(ErrorCode::ContextOverflow, message)
    }
}

/// Logs a prompt that is given up, and sends a dead letter with its text.
fn report_given_up(ledger: &mut Ledger, job: &NewJob, deaths: u32, message: &str, messages: &[Message]) {
    tracing::error!(
        job.id = job.key.id,
        job.client = job.key.client,
        trace_id = job.trace_id(),
        deaths,
        "a prompt is given up"
    );
    let text: Vec<&str> = messages.iter().map(|message| message.content.as_str()).collect();
    let text = text.join("\n");
    let letter = DeadLetter {
        reason: ErrorCode::Internal.as_str().to_owned(),
        message: message.to_owned(),
        topic: job.reply.topic().unwrap_or_default().to_owned(),
        id: Some(job.key.id.clone()),
        payload: DeadLetter::beginning(text.as_bytes()),
        bytes: job.payload_bytes.unwrap_or(text.len()),
    };
    ledger.dead_letter(job.key.clone(), letter);
}
