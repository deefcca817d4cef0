//! The thread that owns the engine and, through its decoder, the model.

mod generation;
mod handle;
mod liveness;
mod throttle;

use std::any::Any;
use std::collections::HashMap;
use std::fmt::Display;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use phi_edge_engine::{Decoder, Engine, Event, Finish, Interrupt, RequestId};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::mpsc::error::TryRecvError;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use handle::{EngineThread, Gauges};
use phi_edge_api::PromptProgress;

pub(crate) use generation::EngineWaker;
pub use generation::{EngineCommand, Generation, Sink, Update};
pub(crate) use handle::{Ask, EngineClient, LoadGauge, PrefixGauge, Waker};
pub use handle::{EngineHandle, EngineInfo, EngineLoad, EngineLost};
pub use liveness::{Heartbeat, LivenessProbe};
pub use throttle::Throttle;

/// The capacity of the thread's channel of commands. The service sends no more requests than there are slots and the
/// thread takes all that wait before each step, so that a few places are plenty.
const COMMAND_CAPACITY: usize = 16;

/// The reason why the engine did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError<E> {
    /// The thread could not be started.
    #[error("the engine's thread can't be started")]
    Thread(#[source] std::io::Error),
    /// The engine could not be built.
    #[error(transparent)]
    Build(E),
    /// Building it panicked; the log says where.
    #[error("building the engine panicked: {0}")]
    Panicked(String),
}

/// Starts the thread `name`, builds the engine on it and waits until it is ready.
///
/// `build` may take long (it loads the model). With `unload_after` the engine is dropped after this idle time, and built
/// again when it is needed; a build that then fails ends the thread. A panic in `build` or later in the engine ends the
/// thread, not the process.
pub async fn spawn_engine<D, E, F>(
    name: &str,
    unload_after: Option<Duration>,
    build: F,
) -> Result<EngineHandle, StartError<E>>
where
    D: Decoder,
    E: Display + Send + 'static,
    F: FnMut() -> Result<Engine<D>, E> + Send + 'static,
{
    let (commands, inbox) = mpsc::channel(COMMAND_CAPACITY);
    let (ready_tx, ready) = oneshot::channel();
    let (done_tx, done) = oneshot::channel();
    let interrupt = Interrupt::new();
    let gauges = Gauges::default();
    let host = Host {
        build,
        unload_after,
        inbox,
        interrupt: interrupt.clone(),
        gauges: gauges.clone(),
        clock: None,
    };
    let join = std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(move || {
            host.run(ready_tx);
            let _ = done_tx.send(());
        })
        .map_err(StartError::Thread)?;
    match ready.await {
        Ok(Ok(info)) => {
            let thread = EngineThread { join, done };
            Ok(EngineHandle::from_parts(commands, interrupt, info).with_thread(thread, gauges))
        }
        Ok(Err(error)) => Err(error),
        Err(_) => Err(StartError::Panicked("the thread ended without a word".to_owned())),
    }
}

/// The state of the engine's thread.
struct Host<F> {
    build: F,
    unload_after: Option<Duration>,
    inbox: mpsc::Receiver<EngineCommand>,
    interrupt: Interrupt,
    gauges: Gauges,
    /// A runtime for timed waits, since the thread does not belong to the service's; made when it is first needed.
    clock: Option<Runtime>,
}

/// The reason why [`Host::serve`] returned.
enum ServeEnd {
    /// All handles are dropped.
    Orphaned,
    /// The engine was idle for the time of `unload_after`.
    Idle,
}

impl<F> Host<F> {
    fn run<D, E>(mut self, ready: oneshot::Sender<Result<EngineInfo, StartError<E>>>)
    where
        D: Decoder,
        E: Display,
        F: FnMut() -> Result<Engine<D>, E>,
    {
        let engine = match self.load() {
            Ok(engine) => engine,
            Err(error) => {
                let _ = ready.send(Err(error));
                return;
            }
        };
        let info = EngineInfo {
            context_length: engine.context(),
            memory: engine.memory(),
            slots: engine.slots(),
        };
        if ready.send(Ok(info)).is_err() {
            // The caller was dropped while the engine was built.
            return;
        }
        // Unwind safe: what a panic leaves half done is dropped with the engine, and not used afterwards.
        if let Err(panic) = catch_unwind(AssertUnwindSafe(move || self.live(engine))) {
            tracing::error!(
                panic = panic_message(panic.as_ref()),
                "the engine panicked; it takes no more work"
            );
        }
    }

    /// Serves until all handles are dropped; between unload and load without the engine.
    fn live<D, E>(&mut self, engine: Engine<D>)
    where
        D: Decoder,
        E: Display,
        F: FnMut() -> Result<Engine<D>, E>,
    {
        let (mut engine, mut first) = (engine, None);
        loop {
            if matches!(self.serve(engine, first), ServeEnd::Orphaned) {
                return;
            }
            self.gauges.prefixes.clear();
            self.gauges.load.unloaded();
            tracing::info!("the model is unloaded, because it was idle");
            let Some(command) = self.inbox.blocking_recv() else {
                return;
            };
            first = Some(command);
            // Commands that come meanwhile wait in the channel.
            engine = match self.load() {
                Ok(engine) => engine,
                Err(error) => {
                    tracing::error!(%error, "the model can't be loaded again; the engine takes no more work");
                    return;
                }
            };
            tracing::info!(
                ms = u64::try_from(self.gauges.load.read().load_time.as_millis()).unwrap_or(u64::MAX),
                "the model is loaded again"
            );
        }
    }

    fn load<D, E>(&mut self) -> Result<Engine<D>, StartError<E>>
    where
        D: Decoder,
        F: FnMut() -> Result<Engine<D>, E>,
    {
        let begun = Instant::now();
        let engine = match catch_unwind(AssertUnwindSafe(&mut self.build)) {
            Ok(Ok(engine)) => engine,
            Ok(Err(error)) => return Err(StartError::Build(error)),
            Err(panic) => return Err(StartError::Panicked(panic_message(panic.as_ref()))),
        };
        self.gauges.prefixes.update(&engine);
        self.gauges.load.loaded(begun.elapsed(), engine.kv_use());
        Ok(engine)
    }

    /// Runs the engine until all handles are dropped or the idle time is over. `first` is the command it was loaded for.
    fn serve<D: Decoder>(&mut self, mut engine: Engine<D>, first: Option<EngineCommand>) -> ServeEnd {
        let epoch = Instant::now();
        let now = || epoch.elapsed();
        let Gauges {
            liveness,
            load,
            throttle,
            prefixes,
        } = self.gauges.clone();
        let mut sinks: HashMap<RequestId, Sink> = HashMap::new();
        let mut events = Vec::new();
        let mut orphaned = false;
        if let Some(command) = first {
            liveness.work();
            take(&mut engine, &mut sinks, command, now());
        }
        loop {
            let waits_for_pixels = engine.waits_for_pixels();
            if engine.is_idle() || waits_for_pixels {
                liveness.rest();
                // Work is at hand while pixels are made: the model stays loaded.
                let next = if waits_for_pixels {
                    // Without handles what waits is cancelled below.
                    self.inbox.blocking_recv().ok_or(None)
                } else {
                    self.next().map_err(Some)
                };
                match next {
                    Err(None) => liveness.work(),
                    Ok(command) => {
                        liveness.work();
                        take(&mut engine, &mut sinks, command, now());
                    }
                    Err(Some(end)) => return end,
                }
            }
            // In this order no cancellation is missed: one that raised before this has set its flag before
            // the flags are read below, one that raises later is found by the run.
            self.interrupt.clear();
            loop {
                match self.inbox.try_recv() {
                    Ok(command) => take(&mut engine, &mut sinks, command, now()),
                    Err(TryRecvError::Empty) => break,
                    Err(TryRecvError::Disconnected) => {
                        orphaned = true;
                        break;
                    }
                }
            }
            for (id, sink) in &sinks {
                if orphaned || sink.is_cancelled() {
                    engine.cancel(*id);
                }
            }
            let (begun, encoded) = (Instant::now(), engine.crops_encoded());
            engine.step(&now, &self.interrupt, &mut events);
            let step = begun.elapsed();
            liveness.step();
            load.stepped(&engine, engine.crops_encoded() - encoded);
            // Before the events: who has an answer finds its tokens in the cache.
            prefixes.update(&engine);
            for event in events.drain(..) {
                deliver(&mut sinks, event);
            }
            if throttle.share() < 1.0 && !engine.is_idle() {
                // A pause must not look like a stuck step.
                liveness.rest();
                throttle.pause(step, &self.interrupt);
                liveness.work();
            }
        }
    }

    /// Waits for the next command.
    fn next(&mut self) -> Result<EngineCommand, ServeEnd> {
        let Some(limit) = self.unload_after else {
            return self.inbox.blocking_recv().ok_or(ServeEnd::Orphaned);
        };
        if self.clock.is_none() {
            self.clock = Builder::new_current_thread().enable_time().build().ok();
        }
        let Some(clock) = &self.clock else {
            // Without a timer the model stays loaded.
            return self.inbox.blocking_recv().ok_or(ServeEnd::Orphaned);
        };
        let inbox = &mut self.inbox;
        match clock.block_on(async { timeout(limit, inbox.recv()).await }) {
            Ok(command) => command.ok_or(ServeEnd::Orphaned),
            Err(_) => Err(ServeEnd::Idle),
        }
    }
}

fn take<D: Decoder>(
    engine: &mut Engine<D>,
    sinks: &mut HashMap<RequestId, Sink>,
    command: EngineCommand,
    now: std::time::Duration,
) {
    match command {
        EngineCommand::Generate { request, sink } => {
            let id = request.id;
            match engine.submit(request, now) {
                Ok(()) => {
                    sinks.insert(id, sink);
                }
                Err(reason) => sink.fail(reason),
            }
        }
        EngineCommand::Wake => {}
    }
}

fn deliver(sinks: &mut HashMap<RequestId, Sink>, event: Event) {
    match event {
        Event::Started { .. } => {}
        Event::Progress { id, done, total } => {
            if let Some(sink) = sinks.get(&id) {
                sink.prompt(PromptProgress { done, total });
            }
        }
        Event::Text { id, delta } => {
            if let Some(sink) = sinks.get(&id) {
                sink.text(&delta);
            }
        }
        Event::Finished { id, summary } => {
            if summary.finish == Finish::Repetition {
                tracing::debug!(request = id.0, "the sequence went round in circles");
            }
            if let Some(sink) = sinks.remove(&id) {
                sink.finish(summary);
            }
        }
        Event::Failed { id, reason } => {
            if let Some(sink) = sinks.remove(&id) {
                sink.fail(reason);
            }
        }
    }
}

fn panic_message(panic: &(dyn Any + Send)) -> String {
    panic
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "no message".to_owned())
}
