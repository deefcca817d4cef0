//! `phi-edge run`: the daemon. It is built, loads its model, serves, and is shut down.

mod build;
mod crash_marker;
#[cfg(unix)]
mod fatal_signal;
mod health;
mod load;
mod machine_start;
#[cfg(unix)]
mod notify;
mod pool;
mod reload;
mod rule_subscriptions;
mod serve;
mod served_model;
mod shut_down;
pub(crate) mod signals;
mod takeover;
#[cfg(unix)]
mod unix_signals;
#[cfg(windows)]
mod windows_signals;

use std::num::NonZeroUsize;

use phi_edge_config::{Config, Limits, Loaded};
use phi_edge_wire::{State, Status};
use tokio::sync::watch;

use crate::exit::Fault;
use crate::machine::identity;
use crate::setup::args::ConfigArgs;
use crate::setup::{service, settings};
use crate::telemetry::logging::{self, SetLevel};

use load::LoadEnd;
use signals::{ReloadSignals, ServiceControls, StopSignals};

pub(crate) const EXAMPLES: &str = "Examples:
  phi-edge run --config ./phi-edge.toml
  phi-edge run --set mqtt.embedded=true --set model.path=DIR

Then, from any machine that reaches the broker:
  mosquitto_rr -t phi-edge/v1/NODE/request -e phi-edge/v1/NODE/response/1 -m 'Why is the sky blue?'";

/// The optional features of requests that this version has, as the status names them.
const FEATURES: [&str; 6] = ["chat", "stream", "cancel", "session", "truncation", "progress"];

/// The optional feature of requests that a model which takes images has.
const IMAGE_FEATURE: &str = "image";

/// Runs until a signal, the loss of the session or the loss of the engine.
pub(crate) fn run(args: &ConfigArgs) -> Result<(), Fault> {
    run_controlled(args, ServiceControls::default())
}

/// Runs as [`run`] does, and obeys the controls of a service manager.
pub(crate) fn run_controlled(args: &ConfigArgs, controls: ServiceControls) -> Result<(), Fault> {
    let loaded = settings::load(args)?;
    let (set_level, log_limits) = logging::daemon(&loaded.config.log)?;
    announce(&loaded);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        // The engine has its own thread; the other work is light.
        .worker_threads(2)
        .max_blocking_threads(blocking_threads())
        .enable_all()
        .build()
        .map_err(|error| Fault::failed(format!("the async runtime can't start: {error}")))?;
    let outcome = runtime.block_on(async {
        let _reports = log_limits.spawn_reports();
        App::new(&loaded, args, set_level).run(controls).await
    });
    // Not waiting for a model that is still being loaded.
    runtime.shutdown_background();
    outcome
}

/// `phi-edge record-exit`: records the result that systemd reports for the daemon.
pub(crate) fn record_exit(args: &ConfigArgs) -> Result<(), Fault> {
    let loaded = settings::load(args)?;
    let result = std::env::var("SERVICE_RESULT").unwrap_or_default();
    crash_marker::record_service_result(&loaded.config.store.path, &result);
    Ok(())
}

/// The most threads for what blocks: encoding, digests, pictures, names of hosts. All of it is work for a processor or ends soon, and
/// each thread keeps memory of its own for reuse: more threads would be no faster.
fn blocking_threads() -> usize {
    std::thread::available_parallelism().map_or(2, NonZeroUsize::get) + 2
}

fn announce(loaded: &Loaded) {
    let files: Vec<_> = loaded
        .files
        .iter()
        .map(|file| file.display().to_string())
        .collect();
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        files = files.join(" "),
        "phi-edge starts"
    );
    for warning in &loaded.warnings {
        tracing::warn!("{warning}");
    }
}

/// The configuration of the daemon, and what follows it while the daemon runs.
struct App<'a> {
    config: &'a Config,
    /// The configuration with the origin of each value.
    loaded: &'a Loaded,
    /// The arguments with which the configuration is read again.
    args: &'a ConfigArgs,
    status: watch::Sender<Status>,
    /// The limits of the configuration that was read last.
    limits: watch::Sender<Limits>,
    set_level: SetLevel,
}

impl<'a> App<'a> {
    fn new(loaded: &'a Loaded, args: &'a ConfigArgs, set_level: SetLevel) -> Self {
        let config = &loaded.config;
        let status = Status {
            reason: Some("the model is loading".into()),
            version: env!("CARGO_PKG_VERSION").into(),
            features: FEATURES.map(str::to_owned).to_vec(),
            // Whether it takes images is known when the model is loaded.
            limits: service::status_limits(config, false),
            ..Status::new(State::Starting, identity::start_id())
        };
        Self {
            config,
            loaded,
            args,
            status: watch::Sender::new(status),
            limits: watch::Sender::new(config.limits.clone()),
            set_level,
        }
    }

    async fn run(self, controls: ServiceControls) -> Result<(), Fault> {
        let mut signals = StopSignals::new(controls.stops)?;
        let mut reloads = ReloadSignals::new(controls.reloads)?;
        let (mut built, inputs) = build::build(&self).await?;
        let engine = match load::load(self.config, &mut built, &inputs.rules, &mut signals).await {
            LoadEnd::Loaded(engine) => *engine,
            LoadEnd::Ended(end) => return shut_down::without_model(&self, built, inputs, end).await,
        };
        let mut serving = serve::start(&self, built, inputs, engine);
        let reason = serve::serve(&self, &mut serving, &mut signals, &mut reloads).await;
        shut_down::shut_down(&self, serving, reason, signals).await
    }

    fn set_state(&self, state: State, reason: Option<String>) {
        tracing::info!(state = ?state, reason, "state");
        self.status.send_modify(|status| {
            status.state = state;
            status.reason = reason;
        });
    }
}
