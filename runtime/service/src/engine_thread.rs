//! The one thread that owns the engine and, through its decoder, the model.

use std::any::Any;
use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

use phi_edge_engine::{Decoder, Engine, Event, Finish, Interrupt, RequestId};
use tokio::sync::mpsc::error::TryRecvError;
use tokio::sync::{mpsc, oneshot};

use crate::engine_handle::{EngineHandle, EngineInfo, EngineThread, LoadGauge};
use crate::generation::{EngineCommand, Sink};
use crate::pulse::EnginePulse;

/// Commands under way to the thread. The service hands over no more requests than there are slots and the
/// thread takes all that wait before each step, so that a few places are plenty.
const COMMANDS: usize = 16;

/// Why there is no engine.
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
/// `build` may take its time (it loads the model). A panic in it or later in the engine ends the thread,
/// not the process.
pub async fn spawn_engine<D, E, F>(name: &str, build: F) -> Result<EngineHandle, StartError<E>>
where
    D: Decoder,
    E: Send + 'static,
    F: FnOnce() -> Result<Engine<D>, E> + Send + 'static,
{
    let (commands, inbox) = mpsc::channel(COMMANDS);
    let (ready_tx, ready) = oneshot::channel();
    let (done_tx, done) = oneshot::channel();
    let interrupt = Interrupt::new();
    let seen = interrupt.clone();
    let (pulse, load) = (EnginePulse::default(), LoadGauge::default());
    let beating = (pulse.clone(), load.clone());
    let join = std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(move || {
            host(build, inbox, (&seen, &beating.0, &beating.1), ready_tx);
            let _ = done_tx.send(());
        })
        .map_err(StartError::Thread)?;
    match ready.await {
        Ok(Ok(info)) => {
            let thread = EngineThread { join, done };
            Ok(EngineHandle::from_parts(commands, interrupt, info).with_thread(thread, pulse, load))
        }
        Ok(Err(error)) => Err(error),
        Err(_) => Err(StartError::Panicked("the thread ended without a word".to_owned())),
    }
}

fn host<D, E, F>(
    build: F,
    inbox: mpsc::Receiver<EngineCommand>,
    (interrupt, pulse, load): (&Interrupt, &EnginePulse, &LoadGauge),
    ready: oneshot::Sender<Result<EngineInfo, StartError<E>>>,
) where
    D: Decoder,
    F: FnOnce() -> Result<Engine<D>, E>,
{
    // What a panic leaves half done is dropped with the engine: nobody sees it afterwards.
    let engine = match catch_unwind(AssertUnwindSafe(build)) {
        Ok(Ok(engine)) => engine,
        Ok(Err(error)) => {
            let _ = ready.send(Err(StartError::Build(error)));
            return;
        }
        Err(panic) => {
            let _ = ready.send(Err(StartError::Panicked(panic_message(panic.as_ref()))));
            return;
        }
    };
    let info = EngineInfo {
        context_length: engine.caps().context_length,
        slots: engine.slots(),
    };
    if ready.send(Ok(info)).is_err() {
        // Whoever wanted the engine has gone while it was built.
        return;
    }
    let served = catch_unwind(AssertUnwindSafe(move || {
        serve(engine, inbox, interrupt, (pulse, load));
    }));
    if let Err(panic) = served {
        tracing::error!(
            panic = panic_message(panic.as_ref()),
            "the engine panicked; it takes no more work"
        );
    }
}

/// Works until all handles are dropped.
fn serve<D: Decoder>(
    mut engine: Engine<D>,
    mut inbox: mpsc::Receiver<EngineCommand>,
    interrupt: &Interrupt,
    (pulse, load): (&EnginePulse, &LoadGauge),
) {
    let epoch = Instant::now();
    let now = || epoch.elapsed();
    let mut sinks: HashMap<RequestId, Sink> = HashMap::new();
    let mut events = Vec::new();
    let mut orphaned = false;
    loop {
        if engine.is_idle() {
            pulse.rest();
            let Some(command) = inbox.blocking_recv() else {
                return;
            };
            pulse.work();
            take(&mut engine, &mut sinks, command, now());
        }
        // In this order no cancellation is missed: one that raised before this has set its flag before
        // the flags are read below, one that raises later is found by the run.
        interrupt.clear();
        loop {
            match inbox.try_recv() {
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
        engine.step(&now, interrupt, &mut events);
        pulse.step();
        load.stepped(engine.kv_use());
        for event in events.drain(..) {
            deliver(&mut sinks, event);
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
    }
}

fn deliver(sinks: &mut HashMap<RequestId, Sink>, event: Event) {
    match event {
        Event::Started { .. } => {}
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
