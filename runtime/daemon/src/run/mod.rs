//! `phi-edge run`: the daemon. Configuration, parts, signals, an orderly end.

mod crash_marker;
#[cfg(unix)]
mod fatal_signal;
mod health;
#[cfg(unix)]
mod notify;
mod pool;
mod rule_subscriptions;
mod served_model;
mod signals;

use std::time::Duration;

use phi_edge_config::{Config, Limits, Loaded, TimeSpan};
use phi_edge_mqtt::wire::{State, Status};
use phi_edge_mqtt::{EmbeddedBroker, Link, LinkInputs, LinkState, RequestLimits, TlsFiles};
use phi_edge_service::rules::Rule;
use phi_edge_service::{LastEnd, Service, ServiceConfig, StartError, Store, Witnesses, spawn_engine};
use tokio::sync::{mpsc, watch};

use crate::exit::{Exit, Fault};
use crate::machine::identity;
use crate::machine::sysfs::Sysfs;
use crate::machine::thermal::{self, ThrottleState};
use crate::setup::args::ConfigArgs;
use crate::setup::model::{self, Choice};
use crate::setup::settings;
use crate::setup::{link, service};
use crate::telemetry::logging::{self, SetLevel};
use crate::telemetry::{Telemetry, stats};

use crash_marker::CrashMarker;
use rule_subscriptions::RuleSubscriptions;
use served_model::ServedModel;
use signals::{ReloadSignals, StopSignals};

/// Replies between service and link. Beyond them outcomes wait in the service and chunks are joined.
const REPLY_QUEUE_CAPACITY: usize = 64;
/// How long the broker may take to give the pool's requests to others.
const POOL_LEAVE_TIMEOUT: Duration = Duration::from_secs(2);
/// How long the last replies may take to reach the broker.
const LAST_REPLIES_TIMEOUT: Duration = Duration::from_secs(5);

pub(crate) const EXAMPLES: &str = "Examples:
  phi-edge run --config ./phi-edge.toml
  phi-edge run --set mqtt.embedded=true --set model.path=DIR

Then, from any machine that reaches the broker:
  mosquitto_rr -t phi-edge/v1/NODE/request -e phi-edge/v1/NODE/response/1 -m 'Why is the sky blue?'";

/// Runs until a signal, the loss of the session or the loss of the engine.
pub(crate) fn run(args: &ConfigArgs) -> Result<(), Fault> {
    let loaded = settings::load(args)?;
    let (set_level, log_limits) = logging::daemon(&loaded.config.log);
    announce(&loaded);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        // The engine has its own thread; what is left is light.
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|error| Fault::failed(format!("the async runtime can't start: {error}")))?;
    let outcome = runtime.block_on(async {
        let _reports = log_limits.reported();
        App::new(&loaded, args, set_level).and_run().await
    });
    // A model that is still being loaded is not worth waiting for.
    runtime.shutdown_background();
    outcome
}

/// `phi-edge record-exit`: notes what systemd says of the daemon's end.
pub(crate) fn record_exit(args: &ConfigArgs) -> Result<(), Fault> {
    let loaded = settings::load(args)?;
    let result = std::env::var("SERVICE_RESULT").unwrap_or_default();
    crash_marker::record_service_result(&loaded.config.store.path, &result);
    Ok(())
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

struct App<'a> {
    config: &'a Config,
    /// The same, with where it came from.
    loaded: &'a Loaded,
    /// Where the configuration comes from, to be read again.
    args: &'a ConfigArgs,
    status: watch::Sender<Status>,
    /// As they were read last.
    limits: watch::Sender<Limits>,
    set_level: SetLevel,
}

/// What takes over a configuration that was read again.
struct Reloadable<'a> {
    rules: &'a RuleSubscriptions,
    service: &'a Service,
    link: &'a Link,
    /// The link's files, whose content may have changed.
    tls: Option<&'a TlsFiles>,
    request_limits: &'a watch::Sender<RequestLimits>,
    limits: &'a watch::Sender<Limits>,
    model: &'a str,
    /// Tells whoever looks at files that they may be others.
    reloaded: &'a watch::Sender<()>,
}

impl Reloadable<'_> {
    /// Certificates and rules first: they are what can be wrong, and then nothing else has changed.
    fn take(&self, config: &Config, set_level: &SetLevel) -> Result<Config, Fault> {
        if let Some(tls) = self.tls {
            tls.check()
                .map_err(|error| Fault::new(Exit::Config, error.to_string()))?;
        }
        self.rules.reload(config, self.service)?;
        self.service.set_limits(&service::service(config, self.model));
        self.request_limits.send_replace(link::request_limits(config));
        self.limits.send_replace(config.limits.clone());
        set_level(&config.log).map_err(Fault::failed)?;
        if let Err(error) = self.link.renew_certificates() {
            // They were right a moment ago.
            tracing::error!(%error, "a file of TLS is being changed; the connection keeps the old ones until the next reload");
        }
        self.reloaded.send_replace(());
        Ok(config.clone())
    }
}

/// Why the daemon ends.
enum StopReason {
    Signal,
    TakenOver,
    EngineLost,
    /// The model could not be loaded again, since another one stands in its place.
    ModelReplaced,
}

impl<'a> App<'a> {
    fn new(loaded: &'a Loaded, args: &'a ConfigArgs, set_level: SetLevel) -> Self {
        let config = &loaded.config;
        let status = Status {
            reason: Some("the model is loading".into()),
            version: env!("CARGO_PKG_VERSION").into(),
            features: vec!["chat".into(), "stream".into(), "cancel".into(), "session".into()],
            limits: service::status_limits(config),
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

    async fn and_run(self) -> Result<(), Fault> {
        let config = self.config;
        let mut signals = StopSignals::new()?;
        let mut reloads = ReloadSignals::new()?;
        let _lock = crash_marker::lock(&config.store.path)?;
        let (rules, at_start) = RuleSubscriptions::start(config)?;
        // Before anything is connected: a wrong folder is the commonest fault.
        let served = ServedModel::open(&config.model.path)?;
        let model = served.model();
        let text = std::sync::Arc::new(model.text()?);
        let telemetry = Telemetry::new(config, model, std::sync::Arc::clone(&text) as _)?;
        let (marker, last_end) = CrashMarker::place(&config.store.path);
        let store = self.store(last_end, telemetry.witnesses())?;
        let store_health = store.health();
        let broker = start_broker(config).await?;
        let link_config = link::link(config, broker.as_ref())?;
        let (service_tx, service_rx) = watch::channel(None);
        let service_seen = service_rx.clone();
        let (replies_tx, replies) = mpsc::channel(REPLY_QUEUE_CAPACITY);
        let (stats_tx, stats) = watch::channel(serde_json::Value::Null);
        let (open_tx, open) = watch::channel(false);
        let request_limits = watch::Sender::new(link::request_limits(config));
        let tls = link::tls_in_use(config);
        let inputs = LinkInputs {
            service: service_rx,
            replies,
            status: self.status.subscribe(),
            stats,
            open,
            rules: rules.topics(),
            limits: request_limits.subscribe(),
        };
        let link =
            Link::start(link_config, inputs).map_err(|error| Fault::new(Exit::Config, error.to_string()))?;
        let mut link_state = link.state();
        let pace = watch::Sender::new(ThrottleState::default());
        let (_metrics, mut beats) = telemetry
            .serve(
                service_seen,
                self.status.subscribe(),
                &link,
                store.health(),
                pace.subscribe(),
                self.limits.subscribe(),
            )
            .await?;

        let name = model.name();
        model::warn_of_demonstration(model);
        #[cfg(unix)]
        notify::send_status("the model is loading");
        let loading = self.load(served.clone(), &at_start);
        let (engine, provider) = tokio::select! {
            loaded = loading => match loaded {
                Ok(loaded) => loaded,
                Err(fault) => {
                    self.state(State::Degraded, Some(fault.message.clone()));
                    link.shutdown(LAST_REPLIES_TIMEOUT).await;
                    marker.remove();
                    return Err(fault);
                }
            },
            () = signals.next() => {
                self.state(State::Draining, Some("stopped while the model was loading".into()));
                link.shutdown(LAST_REPLIES_TIMEOUT).await;
                marker.remove();
                return Ok(());
            }
            () = taken_over(&mut link_state) => {
                marker.remove();
                return Err(session_taken_over());
            }
        };

        let context = engine.info().context_length;
        #[cfg(unix)]
        let pulse = engine.pulse();
        let throttle = engine.throttle();
        let service = Service::start_with(
            ServiceConfig {
                rules: at_start,
                witnesses: telemetry.witnesses(),
                ..service::service(config, &name)
            },
            engine,
            text,
            replies_tx,
            Some(store),
        );
        service_tx.send_replace(Some(service.clone()));
        self.status.send_modify(|status| {
            status.state = State::Ready;
            status.reason = None;
            status.model = Some(name.clone());
            status.context = Some(context);
            status.provider = Some(provider.into());
        });
        tracing::info!(model = name, provider, context, base = config.node.base, "ready");
        let of_store = store_health.clone();
        let (reloaded_tx, reloaded) = watch::channel(());
        let health = tokio::spawn(health::watch(
            self.status.clone(),
            store_health,
            link.state(),
            link.vitals().short_connections(),
            tls.clone(),
            reloaded,
        ));
        let pool = pool::watch(
            service.clone(),
            self.status.subscribe(),
            self.limits.subscribe(),
            open_tx,
        );
        let pool = tokio::spawn(pool);
        let sources = stats::Sources {
            service: service.clone(),
            link: link.watch_counters(),
            store: of_store,
            pace: pace.subscribe(),
            sysfs: Sysfs::at(&config.runtime.pace.sysfs),
        };
        let publisher = tokio::spawn(stats::publish(sources, stats_tx));
        let pace = tokio::spawn(thermal::govern(config.runtime.pace.clone(), throttle, pace));

        #[cfg(unix)]
        let notifier = tokio::spawn(notify::run(notify::NotifierInputs {
            status: self.status.subscribe(),
            link: link.state(),
            vitals: link.vitals(),
            engine: pulse,
            limits: self.limits.subscribe(),
        }));

        let end = loop {
            tokio::select! {
                () = signals.next() => break StopReason::Signal,
                () = taken_over(&mut link_state) => break StopReason::TakenOver,
                () = service.engine_lost() => break if served.is_replaced() {
                    StopReason::ModelReplaced
                } else {
                    StopReason::EngineLost
                },
                () = reloads.next() => self.reload(&Reloadable {
                    rules: &rules,
                    service: &service,
                    link: &link,
                    tls: tls.as_ref(),
                    request_limits: &request_limits,
                    limits: &self.limits,
                    model: &name,
                    reloaded: &reloaded_tx,
                }),
                // An error: whoever asked has left.
                Some(asked) = beats.recv() => drop(asked.send(())),
            }
        };
        health.abort();
        let helpers = vec![
            publisher,
            pool,
            pace,
            #[cfg(unix)]
            notifier,
        ];
        // What was asked of the broker on a connection that lives is with it when the connection ends in good order.
        let up = *link_state.borrow() == LinkState::Up;
        let ended = self.end(end, signals, service, link, helpers, marker).await;
        if up && ended.is_ok() {
            rules.confirm();
        }
        ended
    }

    /// Loads the model on the engine's thread, for a node with these rules.
    async fn load(
        &self,
        served: ServedModel,
        rules: &[Rule],
    ) -> Result<(phi_edge_service::EngineHandle, &'static str), Fault> {
        let choice = Choice::of(self.config, rules);
        let (provider_tx, provider) = tokio::sync::oneshot::channel();
        let mut provider_tx = Some(provider_tx);
        let unload_after = self.config.runtime.unload_after.map(TimeSpan::get);
        let path = served.model().path().display().to_string();
        tracing::info!(model = path, "loading the model");
        let handle = spawn_engine("engine", unload_after, move || {
            served.verify_unchanged()?;
            let engine = choice.engine(served.model());
            // What was read of another folder meanwhile is as wrong as all of it.
            served.verify_unchanged()?;
            let engine = engine?;
            if let Some(tell) = provider_tx.take() {
                let _ = tell.send(engine.decoder().provider().as_str());
            }
            Ok::<_, Fault>(engine)
        })
        .await
        .map_err(|error| match error {
            StartError::Build(fault) => fault,
            other => Fault::failed(other),
        })?;
        let provider = provider.await.unwrap_or("unknown");
        Ok((handle, provider))
    }

    /// Reads the configuration again and takes over what can change while the daemon runs. What is wrong is told, and
    /// changes nothing.
    fn reload(&self, parts: &Reloadable<'_>) {
        #[cfg(unix)]
        let _reloading = notify::Reloading::begin();
        let reloaded = settings::reload(self.args, self.loaded).and_then(|read| {
            let config = parts.take(&read.loaded.config, &self.set_level)?;
            Ok((config, read.held))
        });
        match reloaded {
            Ok((config, held)) => {
                for key in held {
                    tracing::warn!(
                        key,
                        "a change of this key needs a restart; the value in effect stays"
                    );
                }
                self.status
                    .send_modify(|status| status.limits = service::status_limits(&config));
                tracing::info!(rules = config.rules.len(), "the configuration is read again");
            }
            Err(fault) => {
                tracing::error!(
                    error = fault.message,
                    "the configuration can't be used; the old one stays in effect"
                );
            }
        }
    }

    async fn end(
        self,
        end: StopReason,
        mut signals: StopSignals,
        service: Service,
        link: Link,
        helpers: Vec<tokio::task::JoinHandle<()>>,
        marker: CrashMarker,
    ) -> Result<(), Fault> {
        let grace = self.limits.borrow().drain_grace.get();
        let crashed = matches!(end, StopReason::EngineLost);
        let by_signal = matches!(end, StopReason::Signal);
        let (reason, outcome) = match end {
            StopReason::Signal => ("stopped".to_owned(), Ok(())),
            StopReason::TakenOver => ("taken over".to_owned(), Err(session_taken_over())),
            StopReason::EngineLost => {
                marker.note_crash();
                let fault = Fault::failed("the engine has failed; the log above says how");
                (fault.message.clone(), Err(fault))
            }
            StopReason::ModelReplaced => {
                let fault = served_model::replaced();
                (fault.message.clone(), Err(fault))
            }
        };
        self.state(State::Draining, Some(reason));
        let orderly = async {
            // What the pool has given us by then is ours to answer: no other member gets it while we are away.
            if by_signal {
                link.left_pool(POOL_LEAVE_TIMEOUT).await;
            }
            link.stop_taking();
            service.drain(grace).await;
            helpers.iter().for_each(tokio::task::JoinHandle::abort);
            link.shutdown(LAST_REPLIES_TIMEOUT).await;
            service.close_store().await;
        };
        tokio::select! {
            () = orderly => tracing::info!("phi-edge ends"),
            () = signals.next() => {
                tracing::warn!("a second signal: ending at once");
                return Err(Fault::failed("ended at once by a second signal"));
            }
        }
        if !crashed {
            marker.remove();
        }
        outcome
    }

    /// The durable store, or the beginnings of it where the disk fails.
    fn store(&self, last_end: LastEnd, witnesses: Witnesses) -> Result<Store, Fault> {
        Store::open_watched(service::store(self.config), last_end, witnesses)
            .map_err(|error| Fault::new(Exit::Config, error.to_string()))
    }

    fn state(&self, state: State, reason: Option<String>) {
        tracing::info!(state = ?state, reason, "state");
        self.status.send_modify(|status| {
            status.state = state;
            status.reason = reason;
        });
    }
}

/// The broker in this process, if the configuration wants one.
async fn start_broker(config: &Config) -> Result<Option<EmbeddedBroker>, Fault> {
    let Some(config) = link::embedded_broker(config)? else {
        return Ok(None);
    };
    let broker = EmbeddedBroker::start(config)
        .await
        .map_err(|error| Fault::new(Exit::Config, error.to_string()))?;
    tracing::info!(address = %broker.address(), "the embedded broker listens");
    Ok(Some(broker))
}

/// The fault of a session that another client took.
fn session_taken_over() -> Fault {
    Fault::new(
        Exit::TakenOver,
        "another client with the same id took over the MQTT session: give each node its own node.name or \
         mqtt.client_id",
    )
}

/// Waits until another client has our session.
async fn taken_over(state: &mut watch::Receiver<LinkState>) {
    if state
        .wait_for(|state| *state == LinkState::TakenOver)
        .await
        .is_err()
    {
        // The link is gone without that: whoever ended it knows.
        std::future::pending::<()>().await;
    }
}
