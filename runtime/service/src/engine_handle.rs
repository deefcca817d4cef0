//! The way to the engine's thread.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use phi_edge_engine::{Detokenizer, GenerateRequest, Interrupt, KvUse, RequestId, Sampling, Stop, TokenId};
use tokio::sync::{mpsc, oneshot};

use crate::generation::{EngineCommand, Generation};
use crate::pulse::EnginePulse;

/// What the service must know of the engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EngineInfo {
    /// The most tokens of prompt and answer together.
    pub context_length: usize,
    /// How many requests run at once.
    pub slots: usize,
}

/// How the engine's thread is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct EngineLoad {
    /// Steps that were done since the start.
    pub steps: u64,
    /// What keys and values took after the last of them.
    pub kv: KvUse,
}

/// Where the engine's thread writes down its [`EngineLoad`]: held for no longer than a copy takes.
#[derive(Debug, Clone, Default)]
pub(crate) struct LoadGauge(Arc<Mutex<EngineLoad>>);

impl LoadGauge {
    pub(crate) fn read(&self) -> EngineLoad {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn stepped(&self, kv: KvUse) {
        let mut load = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        load.steps += 1;
        load.kv = kv;
    }
}

/// The engine's thread is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the engine has stopped")]
pub struct EngineLost;

/// Owns the engine's thread: it ends when this is dropped or [`EngineHandle::stop`]ped.
pub struct EngineHandle {
    client: EngineClient,
    info: EngineInfo,
    pulse: EnginePulse,
    load: LoadGauge,
    thread: Option<EngineThread>,
}

pub(crate) struct EngineThread {
    pub(crate) join: JoinHandle<()>,
    /// Resolves when the thread has dropped all it had.
    pub(crate) done: oneshot::Receiver<()>,
}

impl EngineHandle {
    /// A handle whose commands `commands`' receiver takes: a scripted engine for tests. Dropping the
    /// receiver is the death of the engine.
    pub fn from_parts(commands: mpsc::Sender<EngineCommand>, interrupt: Interrupt, info: EngineInfo) -> Self {
        Self {
            client: EngineClient {
                commands,
                interrupt,
                next_id: Arc::default(),
            },
            info,
            pulse: EnginePulse::default(),
            load: LoadGauge::default(),
            thread: None,
        }
    }

    pub(crate) fn with_thread(mut self, thread: EngineThread, pulse: EnginePulse, load: LoadGauge) -> Self {
        self.thread = Some(thread);
        self.pulse = pulse;
        self.load = load;
        self
    }

    pub(crate) fn load(&self) -> LoadGauge {
        self.load.clone()
    }

    /// What the engine can do.
    pub fn info(&self) -> &EngineInfo {
        &self.info
    }

    /// Tells whether the thread gets on; it may outlive this.
    pub fn pulse(&self) -> EnginePulse {
        self.pulse.clone()
    }

    pub(crate) fn client(&self) -> EngineClient {
        self.client.clone()
    }

    /// Waits until the engine's thread is gone.
    pub async fn lost(&self) {
        self.client.commands.closed().await;
    }

    /// Ends the thread and waits for it, `limit` at most; what it still runs is cut short. False if it did
    /// not end in time.
    pub async fn stop(self, limit: Duration) -> bool {
        let Self { client, thread, .. } = self;
        // In this order: the thread clears the interrupt before it looks whether it is still wanted.
        let interrupt = client.interrupt.clone();
        drop(client);
        interrupt.raise();
        let Some(EngineThread { join, done }) = thread else {
            return true;
        };
        // An error means that the sender is gone, and with it the thread.
        if tokio::time::timeout(limit, done).await.is_err() {
            return false;
        }
        // The thread has nothing left to do but return: this does not block.
        join.join().is_ok()
    }
}

/// What a job needs of the engine.
#[derive(Clone)]
pub(crate) struct EngineClient {
    commands: mpsc::Sender<EngineCommand>,
    interrupt: Interrupt,
    next_id: Arc<AtomicU64>,
}

/// One answer to generate.
pub(crate) struct Ask {
    pub(crate) prompt: Vec<TokenId>,
    pub(crate) max_tokens: usize,
    pub(crate) sampling: Sampling,
    pub(crate) stop: Stop,
    pub(crate) detokenizer: Box<dyn Detokenizer>,
}

impl EngineClient {
    /// Hands a request to the engine. The engine takes commands between its steps, so the wait is short.
    pub(crate) async fn generate(&self, ask: Ask) -> Result<Generation, EngineLost> {
        let id = RequestId(self.next_id.fetch_add(1, Ordering::Relaxed));
        let (generation, sink) = Generation::new(self.interrupt.clone(), id);
        let request = GenerateRequest {
            id,
            prompt: ask.prompt,
            max_tokens: ask.max_tokens,
            sampling: ask.sampling,
            stop: ask.stop,
            detokenizer: ask.detokenizer,
            // The job's own task watches the deadline: it also cuts short the run under way.
            deadline: None,
        };
        self.commands
            .send(EngineCommand::Generate { request, sink })
            .await
            .map_err(|_| EngineLost)?;
        Ok(generation)
    }
}
