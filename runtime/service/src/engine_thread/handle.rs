//! The handle of the engine's thread, the clients that send it commands, and its gauges.

use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use phi_edge_engine::{
    CachedPrefixes, Decoder, Detokenizer, Engine, GenerateRequest, Image, Interrupt, KvUse, RequestId,
    Sampling, Stop, Symbol,
};
use tokio::sync::{mpsc, oneshot};

use super::LivenessProbe;
use super::Throttle;
use super::{EngineCommand, EngineWaker, Generation};

/// The time added to that of the last load when a model is loaded ahead of a known time.
const PRELOAD_MARGIN: Duration = Duration::from_secs(2);

/// The properties of an engine that the service depends on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EngineInfo {
    /// The maximum number of tokens of a prompt and its answer together.
    pub context_length: usize,
    /// The maximum number of tokens of all running requests; `None` without a bound.
    pub memory: Option<usize>,
    /// The maximum number of running requests.
    pub slots: usize,
}

/// The state of the engine's thread, and its counters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct EngineLoad {
    /// The number of steps since the start.
    pub steps: u64,
    /// The memory of keys and values after the load or the last step.
    pub kv: KvUse,
    /// The number of crops of images that were encoded since the start.
    pub crops_encoded: u64,
    /// The memory of the features of images after the last step, in bytes.
    pub image_bytes: u64,
    /// Whether the model is in memory; it may be unloaded after an idle time.
    pub loaded: bool,
    /// The number of loads since the start.
    pub loads: u64,
    /// The duration of the last load.
    pub load_time: Duration,
}

/// The [`EngineLoad`] that the engine's thread updates. Its lock is held for a copy only.
#[derive(Debug, Clone, Default)]
pub(crate) struct LoadGauge(Arc<Mutex<EngineLoad>>);

impl LoadGauge {
    pub(crate) fn read(&self) -> EngineLoad {
        *self.0.lock()
    }

    pub(super) fn stepped<D: Decoder>(&self, engine: &Engine<D>, crops: u64) {
        let mut load = self.0.lock();
        load.steps += 1;
        load.kv = engine.kv_use();
        load.crops_encoded += crops;
        load.image_bytes = engine.image_bytes();
    }

    pub(crate) fn loaded(&self, took: Duration, kv: KvUse) {
        let mut load = self.0.lock();
        load.kv = kv;
        load.loaded = true;
        load.loads += 1;
        load.load_time = took;
    }

    pub(crate) fn unloaded(&self) {
        let mut load = self.0.lock();
        load.loaded = false;
        load.kv = KvUse::default();
        load.image_bytes = 0;
    }
}

/// The [`CachedPrefixes`] of the engine, which its thread updates with each step; empty while the model is unloaded.
#[derive(Debug, Clone, Default)]
pub(crate) struct PrefixGauge(Arc<Mutex<CachedPrefixes>>);

impl PrefixGauge {
    pub(crate) fn read(&self) -> CachedPrefixes {
        self.0.lock().clone()
    }

    pub(super) fn update<D: Decoder>(&self, engine: &Engine<D>) {
        engine.update_cached_prefixes(&mut self.0.lock());
    }

    pub(super) fn clear(&self) {
        *self.0.lock() = CachedPrefixes::default();
    }
}

/// A handle that has an unloaded model loaded before it is needed. It does not keep the engine's thread alive.
pub(crate) struct Waker {
    commands: mpsc::WeakSender<EngineCommand>,
    load: LoadGauge,
}

impl Waker {
    /// Has the model loaded if it is unloaded and is needed in `ahead`, and a load takes about that long.
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

/// The error of a command to an engine whose thread is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the engine has stopped")]
pub struct EngineLost;

/// The owner of the engine's thread, which ends when this is dropped or [`EngineHandle::stop`]ped.
pub struct EngineHandle {
    client: EngineClient,
    info: EngineInfo,
    liveness: LivenessProbe,
    load: LoadGauge,
    throttle: Throttle,
    prefixes: PrefixGauge,
    thread: Option<EngineThread>,
}

/// The state that the engine's thread shares with the service beside commands.
#[derive(Clone, Default)]
pub(crate) struct Gauges {
    pub(crate) liveness: LivenessProbe,
    pub(crate) load: LoadGauge,
    pub(crate) throttle: Throttle,
    pub(crate) prefixes: PrefixGauge,
}

pub(crate) struct EngineThread {
    pub(crate) join: JoinHandle<()>,
    /// Resolves when the thread has dropped everything that it owned.
    pub(crate) done: oneshot::Receiver<()>,
}

impl EngineHandle {
    /// Returns a handle of a scripted engine for tests, which takes its commands from the receiver of `commands`. Dropping
    /// the receiver is the loss of the engine.
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
            prefixes: PrefixGauge::default(),
            thread: None,
        }
    }

    pub(crate) fn with_thread(mut self, thread: EngineThread, gauges: Gauges) -> Self {
        self.thread = Some(thread);
        self.liveness = gauges.liveness;
        self.load = gauges.load;
        self.throttle = gauges.throttle;
        self.prefixes = gauges.prefixes;
        self
    }

    pub(crate) fn waker(&self) -> Waker {
        Waker {
            commands: self.client.commands.downgrade(),
            load: self.load.clone(),
        }
    }

    /// Returns the handle that wakes the thread.
    pub(crate) fn engine_waker(&self) -> EngineWaker {
        EngineWaker::new(&self.client.commands)
    }

    /// Returns the throttle of the engine, which may outlive this handle.
    pub fn throttle(&self) -> Throttle {
        self.throttle.clone()
    }

    pub(crate) fn load(&self) -> LoadGauge {
        self.load.clone()
    }

    pub(crate) fn prefixes(&self) -> PrefixGauge {
        self.prefixes.clone()
    }

    /// Returns the properties of the engine.
    pub fn info(&self) -> &EngineInfo {
        &self.info
    }

    /// Returns the liveness probe of the thread, which may outlive this handle.
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

    /// Ends the thread, interrupting its run, and waits for it for at most `limit`. Returns false if it did not end in
    /// time.
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

/// A sender of requests to the engine's thread.
#[derive(Clone)]
pub(crate) struct EngineClient {
    commands: mpsc::Sender<EngineCommand>,
    interrupt: Interrupt,
    next_id: Arc<AtomicU64>,
}

/// A request for one answer.
pub(crate) struct Ask {
    pub(crate) prompt: Vec<Symbol>,
    /// The images that the prompt names.
    pub(crate) images: Vec<Image>,
    pub(crate) max_tokens: usize,
    pub(crate) sampling: Sampling,
    pub(crate) stop: Stop,
    pub(crate) detokenizer: Box<dyn Detokenizer>,
}

impl EngineClient {
    /// Sends a request to the engine. The engine takes commands between its steps, so the wait is short.
    pub(crate) async fn generate(&self, ask: Ask) -> Result<Generation, EngineLost> {
        let id = RequestId(self.next_id.fetch_add(1, Ordering::Relaxed));
        // Of a request with images the engine's thread may wait for pixels.
        let waker = (!ask.images.is_empty()).then(|| EngineWaker::new(&self.commands));
        let (generation, sink) = Generation::new(self.interrupt.clone(), id, waker);
        let request = GenerateRequest {
            id,
            prompt: ask.prompt,
            images: ask.images,
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
