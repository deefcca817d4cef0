//! The daemon in service: its tasks, and the main loop.

use phi_edge_service::{Service, ServiceConfig, Throttle};
use phi_edge_wire::State;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::build::{Built, ServiceInputs};
use super::health::HealthInputs;
use super::load::LoadedEngine;
#[cfg(unix)]
use super::notify;
use super::reload::{self, Reloadable};
use super::signals::{ReloadSignals, StopSignals};
use super::{App, health, pool, takeover};
use crate::machine::sysfs::Sysfs;
use crate::machine::thermal::{self, ThrottleState};
use crate::setup::service;
use crate::telemetry::stats;

/// The daemon that takes requests. Its fields are dropped in this order.
pub(super) struct Serving<'a> {
    /// Told when files may have changed under their names.
    pub(super) reloaded: watch::Sender<()>,
    pub(super) health: JoinHandle<()>,
    /// The tasks that report and regulate until the service has drained.
    pub(super) helpers: Vec<JoinHandle<()>>,
    pub(super) service: Service,
    /// The model's name.
    pub(super) model: String,
    pub(super) built: Built<'a>,
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
    let LoadedEngine { handle, provider } = engine;
    let model = built.served.model().name();
    let context = handle.info().context_length;
    let throttle = handle.throttle();
    #[cfg(unix)]
    let notifier = notify::NotifierInputs {
        status: app.status.subscribe(),
        link: built.link.state(),
        liveness: built.link.liveness(),
        engine: handle.pulse(),
        limits: app.limits.subscribe(),
    };
    let store_health = inputs.store.health();
    let service_config = ServiceConfig {
        rules: inputs.rules,
        witnesses: built.telemetry.witnesses(),
        ..service::service(app.config, &model)
    };
    let service = Service::start_with(
        service_config,
        handle,
        inputs.text,
        inputs.replies,
        Some(inputs.store),
    );
    built.service.send_replace(Some(service.clone()));
    app.status.send_modify(|status| {
        status.state = State::Ready;
        status.reason = None;
        status.model = Some(model.clone());
        status.context = Some(context);
        status.provider = Some(provider.into());
    });
    tracing::info!(model, provider, context, base = app.config.node.base, "ready");
    let (reloaded, reloads) = watch::channel(());
    let health_inputs = HealthInputs {
        store: store_health.clone(),
        link: built.link.state(),
        short_connections: built.link.liveness().short_connections(),
        tls: built.tls.clone(),
        reloaded: reloads,
    };
    let health = tokio::spawn(health::watch(app.status.clone(), health_inputs));
    let sources = stats::StatsSources {
        service: service.clone(),
        link: built.link.watch_counters(),
        store: store_health,
        pace: inputs.throttle.subscribe(),
        sysfs: Sysfs::at(&app.config.runtime.pace.sysfs),
    };
    let helpers = vec![
        tokio::spawn(pool::watch(
            service.clone(),
            app.status.subscribe(),
            app.limits.subscribe(),
            inputs.pool_open,
        )),
        tokio::spawn(stats::publish(sources, inputs.stats)),
        spawn_governor(app, throttle, inputs.throttle),
        #[cfg(unix)]
        tokio::spawn(notify::run(notifier)),
    ];
    Serving {
        reloaded,
        health,
        helpers,
        service,
        model,
        built,
    }
}

fn spawn_governor(app: &App<'_>, throttle: Throttle, state: watch::Sender<ThrottleState>) -> JoinHandle<()> {
    tokio::spawn(thermal::govern(app.config.runtime.pace.clone(), throttle, state))
}

/// Serves until something ends the daemon.
pub(super) async fn serve(
    app: &App<'_>,
    serving: &mut Serving<'_>,
    signals: &mut StopSignals,
    reloads: &mut ReloadSignals,
) -> StopReason {
    let Serving {
        reloaded,
        service,
        model,
        built,
        ..
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
                reloaded,
            }),
            // An error: the health check has given up waiting.
            Some(probe) = built.liveness.recv() => drop(probe.send(())),
        }
    }
}
