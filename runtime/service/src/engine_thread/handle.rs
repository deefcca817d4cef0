//! The way to the engine's thread.

use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use phi_edge_engine::{Detokenizer, GenerateRequest, Interrupt, KvUse, RequestId, Sampling, Stop, TokenId};
use tokio::sync::{mpsc, oneshot};

use super::LivenessProbe;
use super::Throttle;
use super::{EngineCommand, Generation};

/// So much earlier than the last load took is a model loaded that is needed at a known time.
const PRELOAD_MARGIN: Duration = Duration::from_secs(2);

/// What the service must know of the engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EngineInfo {
    /// The most tokens of prompt and answer together.
    pub context_length: usize,
    /// The most tokens of all requests that run at once; `None` without a bound.
    pub memory: Option<usize>,
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
    /// Whether the model is in memory: it is not while nobody has needed it for long.
    pub loaded: bool,
    /// The times that it was loaded since the start.
    pub loads: u64,
    /// What the last of them took.
    pub load_time: Duration,
}

/// Where the engine's thread writes down its [`EngineLoad`]: held for no longer than a copy takes.
#[derive(Debug, Clone, Default)]
pub(crate) struct LoadGauge(Arc<Mutex<EngineLoad>>);

impl LoadGauge {
    pub(crate) fn read(&self) -> EngineLoad {
        *self.0.lock()
    }

    pub(crate) fn stepped(&self, kv: KvUse) {
        let mut load = self.0.lock();
        load.steps += 1;
        load.kv = kv;
    }

    pub(crate) fn loaded(&self, took: Duration) {
        let mut load = self.0.lock();
        load.loaded = true;
        load.loads += 1;
        load.load_time = took;
    }

    pub(crate) fn unloaded(&self) {
        let mut load = self.0.lock();
        load.loaded = false;
        load.kv = KvUse::default();
    }
}

/// Has an engine that was unloaded loaded again before it is needed. Does not keep the engine's thread alive.
pub(crate) struct Waker {
    commands: mpsc::WeakSender<EngineCommand>,
    load: LoadGauge,
}

impl Waker {
    /// Loads the model if it is not in memory and is needed in `ahead`, where loading it takes about that long.
    pub(crate) fn needed_in(&self, ahead: Duration) {
        let load = self.load.read();
        if !load.loaded
            && load.loads > 0
            && ahead <= load.load_time + PRELOAD_MARGIN
            && let Some(commands) = self.commands.upgrade()
        {
            // A full channel holds commands that wake it, too.
            let _ = commands.try_send(EngineCommand::Wake);
        }
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
    liveness: LivenessProbe,
    load: LoadGauge,
    throttle: Throttle,
    thread: Option<EngineThread>,
}

/// What the engine's thread and the rest tell each other beside commands.
#[derive(Clone, Default)]
pub(crate) struct Gauges {
    pub(crate) liveness: LivenessProbe,
    pub(crate) load: LoadGauge,
    pub(crate) throttle: Throttle,
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
            liveness: LivenessProbe::default(),
            load: LoadGauge::default(),
            throttle: Throttle::default(),
            thread: None,
        }
    }

    pub(crate) fn with_thread(mut self, thread: EngineThread, gauges: Gauges) -> Self {
        self.thread = Some(thread);
        self.liveness = gauges.liveness;
        self.load = gauges.load;
        self.throttle = gauges.throttle;
        self
    }

    pub(crate) fn waker(&self) -> Waker {
        Waker {
            commands: self.client.commands.downgrade(),
            load: self.load.clone(),
        }
    }

    /// Slows the engine down; it may outlive this.
    pub fn throttle(&self) -> Throttle {
        self.throttle.clone()
    }

    pub(crate) fn load(&self) -> LoadGauge {
        self.load.clone()
    }

    /// What the engine can do.
    pub fn info(&self) -> &EngineInfo {
        &self.info
    }

    /// Tells whether the thread gets on; it may outlive this.
    pub fn liveness(&self) -> LivenessProbe {
        self.liveness.clone()
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
