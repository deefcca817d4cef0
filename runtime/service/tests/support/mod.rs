//! A service over an engine that the test plays.
#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    reason = "each test file uses its part of one module"
)]

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use phi_edge_engine::{
    Detokenizer, Finish, GenerateRequest, ImageId, ImagePixels, Interrupt, PrefillRuns, Sampling, Summary,
    Symbol, TokenId,
};
use phi_edge_models::{
    ChatEncoder, ConversationTurn, ConversationTurns, Detail, EncodeError, ImageInfo, Message, ModelError,
    PromptRoom, Role, Truncated, encode_truncated,
};
use phi_edge_service::{
    EngineCommand, EngineHandle, EngineInfo, JobKey, LastEnd, NewJob, Priority, PromptError, Prompts,
    Refusal, Reply, ReplyAddress, ReplyBody, ReplyTarget, Service, ServiceConfig, Sink, Store, StoreConfig,
    Truncation,
};
use tokio::sync::mpsc;
use tokio::time::timeout;

/// Longer than anything a test waits for on purpose. Time is paused: waiting costs nothing.
const TIMEOUT: Duration = Duration::from_hours(1);

/// One token per byte; text that starts with `!` can't be encoded, `*` panics.
#[derive(Default)]
pub struct Bytes {
    /// Whether conversations may have images, which are no tokens.
    pub takes_images: bool,
    /// Pixels are ready, or fail with a line, when this says so.
    pub pixel_gate: Option<PixelGate>,
}

pub type PixelGate = Mutex<std::sync::mpsc::Receiver<Result<(), String>>>;

impl Prompts for Bytes {
    fn encode(&self, messages: &[Message]) -> Result<Vec<Symbol>, String> {
        let text: String = messages.iter().map(|m| m.content.as_str()).collect();
        assert!(!text.starts_with('*'), "asked to panic");
        if text.starts_with('!') {
            return Err("the template refuses it".to_owned());
        }
        let mut symbols = Vec::new();
        for message in messages {
            for (at, byte) in message.content.bytes().enumerate() {
                symbols.extend(images_at(message, at));
                symbols.push(Symbol::Token(TokenId(u32::from(byte))));
            }
            symbols.extend(images_at(message, message.content.len()));
        }
        Ok(symbols)
    }

    fn encode_continuation(&self, messages: &[Message]) -> Result<Vec<Symbol>, String> {
        let mut ids = vec![Symbol::Token(TokenId(u32::from(b'|')))];
        ids.extend(self.encode(messages)?);
        Ok(ids)
    }

    fn encode_truncated(
        &self,
        said: &[Symbol],
        messages: &[Message],
        truncation: Truncation,
        room: PromptRoom,
    ) -> Result<Truncated, PromptError> {
        Ok(encode_truncated(self, said, messages, truncation, room)?)
    }

    fn takes_images(&self) -> bool {
        self.takes_images
    }

    fn image_size(&self, file: &[u8]) -> Result<(u32, u32), String> {
        Ok((1, u32::try_from(file.len()).unwrap()))
    }

    /// A file's content is its identity; one that begins with `!` is damaged.
    fn read_image(&self, file: &[u8], detail: Detail) -> Result<ImageInfo, String> {
        if file.starts_with(b"!") {
            return Err("can't be read: it is cut short".to_owned());
        }
        let mut id = [0; 16];
        for (n, byte) in file.iter().enumerate() {
            id[n % 16] ^= byte.wrapping_add(u8::try_from(n % 251).unwrap());
        }
        Ok(ImageInfo {
            id: ImageId(id),
            tokens: detail.crops(4),
        })
    }

    fn image_pixels(&self, _file: &[u8], detail: Detail) -> Result<ImagePixels, String> {
        if let Some(gate) = &self.pixel_gate {
            let opened = gate.lock().unwrap().recv();
            opened.unwrap_or_else(|_| Err("the test is over".to_owned()))?;
        }
        Ok(ImagePixels {
            data: vec![0.0; 3],
            crops: detail.crops(4),
            side: 1,
            grid: (1, 1),
        })
    }

    fn detokenizer(&self) -> Box<dyn Detokenizer> {
        Box::new(Letters)
    }

    fn stop_ids(&self) -> Vec<TokenId> {
        vec![TokenId(0)]
    }
}

impl ChatEncoder for Bytes {
    fn encode_opening(&self, messages: &[Message], room: usize) -> Result<Vec<Symbol>, EncodeError> {
        within(self.encode(messages).unwrap(), room)
    }

    fn encode_following(&self, messages: &[Message], room: usize) -> Result<Vec<Symbol>, EncodeError> {
        within(self.encode_continuation(messages).unwrap(), room)
    }

    /// A turn begins behind each `|`.
    fn turns(&self, ids: &[Symbol]) -> Option<ConversationTurns> {
        let borders = ids
            .iter()
            .enumerate()
            .filter(|(_, id)| **id == TokenId(u32::from(b'|')));
        let starts = std::iter::once(0).chain(borders.map(|(at, _)| at + 1));
        Some(ConversationTurns {
            head: 0,
            turns: starts
                .map(|start| ConversationTurn { start, system: false })
                .collect(),
            close: 1,
        })
    }

    fn token_ends(&self, text: &str) -> Result<Vec<usize>, ModelError> {
        Ok((1..=text.len()).collect())
    }
}

/// The places of the images that stand before a byte of a message.
fn images_at(message: &Message, at: usize) -> impl Iterator<Item = Symbol> {
    let here = message.images.iter().filter(move |placed| placed.at == at);
    let infos = here.filter_map(|placed| placed.info);
    infos.flat_map(|info| Symbol::of_image(info.id, u32::try_from(info.tokens).unwrap()))
}

fn within(ids: Vec<Symbol>, room: usize) -> Result<Vec<Symbol>, EncodeError> {
    if ids.len() > room {
        return Err(EncodeError::TooLong {
            tokens: ids.len(),
            exact: true,
        });
    }
    Ok(ids)
}

/// The text of ids of [`Bytes`].
pub fn text_of(ids: &[Symbol]) -> String {
    ids.iter()
        .filter_map(|id| Some(Letters.push(id.token()?)))
        .collect()
}

/// Each id is a character.
pub struct Letters;

impl Detokenizer for Letters {
    fn push(&mut self, id: TokenId) -> String {
        char::from_u32(id.0).map(String::from).unwrap_or_default()
    }

    fn finish(&mut self) -> String {
        String::new()
    }
}

/// The service, and the hands of the test on its other ends.
pub struct Bench {
    pub service: Service,
    pub commands: mpsc::Receiver<EngineCommand>,
    pub replies: mpsc::Receiver<Reply>,
    pub interrupt: Interrupt,
}

impl Bench {
    pub fn new() -> Self {
        Self::with(ServiceConfig::default(), 1, 64)
    }

    pub fn with(config: ServiceConfig, slots: usize, replies: usize) -> Self {
        Self::on(config, slots, replies, None)
    }

    /// With what is kept in `folder`.
    pub fn durable(folder: &Path, slots: usize, last_end: LastEnd) -> Self {
        let store = Store::open(
            StoreConfig {
                folder: folder.to_owned(),
                max_bytes: 1 << 30,
                memory_fallback: false,
            },
            last_end,
        )
        .unwrap();
        Self::on(ServiceConfig::default(), slots, 64, Some(store))
    }

    pub fn on(config: ServiceConfig, slots: usize, replies: usize, store: Option<Store>) -> Self {
        let info = EngineInfo {
            context_length: 100,
            memory: Some(150),
            slots,
        };
        Self::over(info, config, replies, store)
    }

    /// Over an engine of so large a context.
    pub fn with_context(context_length: usize) -> Self {
        let info = EngineInfo {
            context_length,
            memory: None,
            slots: 1,
        };
        Self::over(info, ServiceConfig::default(), 64, None)
    }

    /// As [`Bench::durable`], with a model that takes images.
    pub fn durable_with_images(folder: &Path, last_end: LastEnd) -> Self {
        let config = StoreConfig {
            folder: folder.to_owned(),
            max_bytes: 1 << 30,
            memory_fallback: false,
        };
        let info = EngineInfo {
            context_length: 1000,
            memory: None,
            slots: 1,
        };
        let store = Store::open(config, last_end).unwrap();
        let prompts = Bytes {
            takes_images: true,
            ..Bytes::default()
        };
        Self::asking(info, ServiceConfig::default(), 64, Some(store), prompts)
    }

    /// With this context and a model that takes images.
    pub fn with_images(context_length: usize) -> Self {
        let info = EngineInfo {
            context_length,
            memory: None,
            slots: 1,
        };
        let prompts = Bytes {
            takes_images: true,
            ..Bytes::default()
        };
        Self::asking(info, ServiceConfig::default(), 64, None, prompts)
    }

    fn over(info: EngineInfo, config: ServiceConfig, replies: usize, store: Option<Store>) -> Self {
        Self::asking(info, config, replies, store, Bytes::default())
    }

    fn asking(
        info: EngineInfo,
        config: ServiceConfig,
        replies: usize,
        store: Option<Store>,
        prompts: Bytes,
    ) -> Self {
        let (commands_tx, commands) = mpsc::channel(16);
        let (replies_tx, replies) = mpsc::channel(replies);
        let interrupt = Interrupt::new();
        let engine = EngineHandle::from_parts(commands_tx, interrupt.clone(), info);
        Self {
            service: Service::start_with(config, engine, Arc::new(prompts), replies_tx, store),
            commands,
            replies,
            interrupt,
        }
    }

    /// What the service asks of the engine next.
    pub async fn asked(&mut self) -> (GenerateRequest, Sink) {
        match timeout(TIMEOUT, self.commands.recv()).await {
            Ok(Some(EngineCommand::Generate { request, sink })) => (request, sink),
            other => panic!("the service asks nothing: {}", other.is_ok()),
        }
    }

    /// True if the service asks nothing of the engine by itself.
    pub async fn asks_nothing(&mut self) -> bool {
        settle().await;
        self.commands.try_recv().is_err()
    }

    pub async fn reply(&mut self) -> Reply {
        match timeout(TIMEOUT, self.replies.recv()).await {
            Ok(Some(reply)) => reply,
            other => panic!("no reply: {other:?}"),
        }
    }

    pub async fn body(&mut self) -> ReplyBody {
        self.reply().await.body
    }

    pub async fn error(&mut self) -> Refusal {
        match self.body().await {
            ReplyBody::Error(refusal) => refusal,
            other => panic!("not an error: {other:?}"),
        }
    }

    /// True if no reply comes by itself.
    pub async fn is_silent(&mut self) -> bool {
        settle().await;
        self.replies.try_recv().is_err()
    }
}

/// Lets everything run that can: paused time moves on only when nothing else does.
pub async fn settle() {
    tokio::time::sleep(Duration::from_millis(1)).await;
}

pub fn key(id: &str) -> JobKey {
    JobKey {
        client: Some("c".to_owned()),
        id: id.to_owned(),
    }
}

pub fn job(id: &str) -> NewJob {
    NewJob {
        key: key(id),
        body_digest: [7; 32],
        messages: vec![Message::new(Role::User, format!("question {id}"))],
        images: Vec::new(),
        max_tokens: 16,
        sampling: Sampling::default(),
        stop: vec![],
        truncation: Truncation::Error,
        stream: false,
        progress: false,
        priority: Priority::Normal,
        deadline: None,
        session: None,
        reply: ReplyAddress {
            target: ReplyTarget::Topic(format!("replies/{id}")),
            correlation: Some(vec![1, 2]),
            traceparent: None,
        },
        payload_bytes: None,
        receipt: None,
    }
}

pub fn summary(finish: Finish, tokens: usize) -> Summary {
    Summary {
        finish,
        tokens: vec![TokenId(65); tokens],
        prompt_tokens: 10,
        image_tokens: 0,
        cached_tokens: 0,
        draft_tokens: 0,
        accepted_draft_tokens: 0,
        queued: Duration::ZERO,
        prefill: Duration::from_millis(20),
        prefill_runs: PrefillRuns::default(),
        decode: Duration::from_millis(30),
    }
}
