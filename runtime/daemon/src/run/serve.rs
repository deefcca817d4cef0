//! The daemon in service: its tasks, and the main loop.

#[cfg(unix)]
use phi_edge_service::LivenessProbe;
use phi_edge_service::{Service, ServiceConfig, StoreHealth, Throttle};
use phi_edge_wire::State;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::build::{Built, ServiceInputs, TaskOutputs};
use super::health::HealthInputs;
use super::load::LoadedEngine;
#[cfg(unix)]
use super::notify;
use super::reload::{self, Reloadable};
use super::signals::{ReloadSignals, StopSignals};
use super::{App, IMAGE_FEATURE, health, pool, takeover};
use crate::machine::sysfs::Sysfs;
use crate::machine::thermal;
use crate::setup::service;
use crate::telemetry::stats;

/// The daemon that takes requests. Its fields are dropped in this order.
pub(super) struct Serving<'a> {
    pub(super) tasks: Tasks,
    pub(super) service: Service,
    /// The model's name.
    pub(super) model: String,
    pub(super) built: Built<'a>,
}

/// The tasks beside the service and the link.
pub(super) struct Tasks {
    /// Told when files may have changed under their names.
    reloaded: watch::Sender<()>,
    /// Aborted first at the shutdown, which sets the status itself.
    pub(super) health: JoinHandle<()>,
    /// The tasks that report and regulate until the service has drained.
    pub(super) helpers: Vec<JoinHandle<()>>,
}

/// The reason why the daemon ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum StopReason {
    Signal,
    TakenOver,
    EngineLost,
    /// The model could not be loaded again, since another one stands in its place.
    ModelReplaced,
}

/// Starts the service and its tasks: from here on the node is ready.
pub(super) fn start<'a>(
    app: &App<'a>,
    built: Built<'a>,
    inputs: ServiceInputs,
    engine: LoadedEngine,
) -> Serving<'a> {
    let LoadedEngine {
        handle,
        provider,
        provider_reason,
        isa,
        cores,
    } = engine;
    let ServiceInputs {
        text,
        rules,
        store,
        replies,
        outputs,
    } = inputs;
    let model = built.served.model().name();
    let context = handle.info().context_length;
    let store_health = store.health();
    let throttle = handle.throttle();
    #[cfg(unix)]
    let liveness = handle.liveness();
    let service_config = ServiceConfig {
        rules,
        observers: built.telemetry.observers(),
        model_context: Some(built.served.model().config().context_length),
        ..service::service(app.config, &model)
    };
    let takes_images = text.takes_images();
    let service = Service::start_with(service_config, handle, text, replies, Some(store));
    built.service.send_replace(Some(service.clone()));
    app.status.send_modify(|status| {
        status.state = State::Ready;
        status.reason = None;
        status.model = Some(model.clone());
        status.context = Some(context);
        status.provider = Some(provider.into());
        status.provider_reason = provider_reason;
        status.isa = isa.map(Into::into);
        status.threads = Some(cores.threads);
        status.cpus = cores.cpus();
        if takes_images {
            status.features.push(IMAGE_FEATURE.to_owned());
            status.limits = service::status_limits(app.config, true);
        }
    });
    tracing::info!(
        model,
        provider,
        isa,
        context,
        base = app.config.node.base,
        "ready"
    );
    let tasks = Tasks::spawn(app, &built, &service, store_health, outputs, throttle);
    #[cfg(unix)]
    let tasks = tasks.with_notifier(app, &built, liveness);
    Serving {
        tasks,
        service,
        model,
        built,
    }
}

impl Tasks {
    fn spawn(
        app: &App<'_>,
        built: &Built<'_>,
        service: &Service,
        store: watch::Receiver<StoreHealth>,
        outputs: TaskOutputs,
        throttle: Throttle,
    ) -> Self {
        let (reloaded, reloads) = watch::channel(());
        let health_inputs = HealthInputs {
            store: store.clone(),
            link: built.link.state(),
            short_connections: built.link.liveness().short_connections(),
            tls: built.tls.clone(),
            reloaded: reloads,
        };
        let health = tokio::spawn(health::watch(app.status.clone(), health_inputs));
        let (status, limits) = (app.status.subscribe(), app.limits.subscribe());
        let pool = pool::watch(service.clone(), status, limits, outputs.pool_open);
        let sources = stats::StatsSources {
            service: service.clone(),
            link: built.link.watch_counters(),
            store,
            throttle: outputs.throttle.subscribe(),
            sysfs: Sysfs::at(&app.config.runtime.pace.sysfs),
            status: app.status.subscribe(),
        };
        let governor = thermal::govern(app.config.runtime.pace.clone(), throttle, outputs.throttle);
        let helpers = vec![
            tokio::spawn(pool),
            tokio::spawn(stats::publish(sources, outputs.stats)),
            tokio::spawn(governor),
        ];
        Self {
            reloaded,
            health,
            helpers,
        }
    }

    #[cfg(unix)]
    fn with_notifier(mut self, app: &App<'_>, built: &Built<'_>, liveness: LivenessProbe) -> Self {
        let inputs = notify::NotifierInputs {
            status: app.status.subscribe(),
            link: built.link.state(),
            liveness: built.link.liveness(),
            engine: liveness,
            limits: app.limits.subscribe(),
        };
        self.helpers.push(tokio::spawn(notify::run(inputs)));
        self
    }
}

/// Serves until something ends the daemon.
pub(super) async fn serve(
    app: &App<'_>,
    serving: &mut Serving<'_>,
    signals: &mut StopSignals,
    reloads: &mut ReloadSignals,
) -> StopReason {
    let Serving {
        tasks,
        service,
        model,
        built,
    } = serving;
    loop {
        tokio::select! {
            () = signals.next() => return StopReason::Signal,
            () = takeover::taken_over(&mut built.link_state) => return StopReason::TakenOver,
            () = service.engine_lost() => return if built.served.is_replaced() {
                StopReason::ModelReplaced
            } else {
                StopReason::EngineLost
            },
            () = reloads.next() => reload::reload(app, &Reloadable {
                rules: &built.rules,
                service,
                link: &built.link,
                tls: built.tls.as_ref(),
                request_limits: &built.request_limits,
                model,
                reloaded: &tasks.reloaded,
            }),
            // An error: the health check has given up waiting.
            Some(probe) = built.liveness.recv() => drop(probe.send(())),
        }
    }
}
