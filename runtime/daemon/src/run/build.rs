//! The parts of the daemon that exist before its model is loaded.

use std::sync::Arc;

use phi_edge_config::Config;
use phi_edge_models::TextModel;
use phi_edge_mqtt::{EmbeddedBroker, Link, LinkInputs, LinkState, RequestLimits, TlsFiles};
use phi_edge_rules::Rule;
use phi_edge_service::{LastEnd, LockError, Observers, Reply, Service, Store, StoreLock};
use serde_json::Value;
use tokio::sync::{mpsc, oneshot, watch};

use super::App;
use super::crash_marker::CrashMarker;
use super::rule_subscriptions::RuleSubscriptions;
use super::served_model::ServedModel;
use crate::exit::{Exit, Fault};
use crate::machine::thermal::ThrottleState;
use crate::setup::{link, service};
use crate::telemetry::{MetricsInputs, MetricsServer, Telemetry};

/// The number of replies between service and link. Beyond it outcomes wait in the service and chunks are joined.
const REPLY_QUEUE_CAPACITY: usize = 64;

/// The parts that live until the daemon has been shut down. They are dropped in this order: the audit and the traces, which
/// end with [`Telemetry`], come after everything that they report on, and the lock of the store last.
pub(super) struct Built<'a> {
    /// Serves metrics and health until it is dropped.
    #[expect(dead_code, reason = "it is held, not used")]
    pub(super) metrics: Option<MetricsServer>,
    /// Requests of the health check, each to be answered by the main loop.
    pub(super) liveness: mpsc::Receiver<oneshot::Sender<()>>,
    pub(super) link: Link,
    pub(super) link_state: watch::Receiver<LinkState>,
    pub(super) request_limits: watch::Sender<RequestLimits>,
    /// None until the service has started.
    pub(super) service: watch::Sender<Option<Service>>,
    /// The link's TLS files, whose content may change.
    pub(super) tls: Option<TlsFiles>,
    #[expect(dead_code, reason = "it is held, not used")]
    pub(super) broker: Option<EmbeddedBroker>,
    pub(super) marker: CrashMarker,
    pub(super) telemetry: Telemetry<'a>,
    pub(super) served: ServedModel,
    pub(super) rules: RuleSubscriptions,
    #[expect(dead_code, reason = "it is held, not used")]
    pub(super) lock: Option<StoreLock>,
}

/// The parts that the service and its tasks take over when they start.
pub(super) struct ServiceInputs {
    pub(super) text: Arc<TextModel>,
    pub(super) rules: Vec<Rule>,
    pub(super) store: Store,
    /// To the link.
    pub(super) replies: mpsc::Sender<Reply>,
    pub(super) outputs: TaskOutputs,
}

/// The senders by which the service's tasks reach the link and the telemetry.
pub(super) struct TaskOutputs {
    /// To the link, which publishes them.
    pub(super) stats: watch::Sender<Value>,
    /// To the link: whether the node takes part in its pool's work.
    pub(super) pool_open: watch::Sender<bool>,
    pub(super) throttle: watch::Sender<ThrottleState>,
}

impl TaskOutputs {
    fn new() -> Self {
        Self {
            stats: watch::Sender::new(Value::Null),
            pool_open: watch::Sender::new(false),
            throttle: watch::Sender::new(ThrottleState::default()),
        }
    }
}

/// Builds the parts in the order in which they need each other: nothing is connected before the store is locked and the
/// model's folder was found to be right.
pub(super) async fn build<'a>(app: &App<'a>) -> Result<(Built<'a>, ServiceInputs), Fault> {
    let config = app.config;
    let lock = lock_store(config)?;
    let (rules, rules_at_start) = RuleSubscriptions::start(config)?;
    // Before anything is connected: a wrong folder is the commonest fault.
    let served = ServedModel::open(&config.model.path)?;
    let text = served.model().text()?.with_num_crops(config.model.num_crops);
    let text = Arc::new(text);
    let telemetry = Telemetry::new(config, served.model(), Arc::clone(&text) as _)?;
    let (marker, last_end) = CrashMarker::place(&config.store.path);
    let store = open_store(config, last_end, telemetry.observers())?;
    let broker = start_broker(config).await?;
    let link_config = link::link(config, broker.as_ref())?;
    let service = watch::Sender::new(None);
    let (replies, link_replies) = mpsc::channel(REPLY_QUEUE_CAPACITY);
    let outputs = TaskOutputs::new();
    let request_limits = watch::Sender::new(link::request_limits(config));
    let link_inputs = LinkInputs {
        service: service.subscribe(),
        replies: link_replies,
        status: app.status.subscribe(),
        stats: outputs.stats.subscribe(),
        open: outputs.pool_open.subscribe(),
        rules: rules.topics(),
        limits: request_limits.subscribe(),
    };
    let link =
        Link::start(link_config, link_inputs).map_err(|error| Fault::new(Exit::Config, error.to_string()))?;
    let metrics_inputs = MetricsInputs {
        service: service.subscribe(),
        status: app.status.subscribe(),
        link: &link,
        store: store.health(),
        throttle: outputs.throttle.subscribe(),
        limits: app.limits.subscribe(),
    };
    let (metrics, liveness) = telemetry.serve(metrics_inputs).await?;
    let built = Built {
        metrics,
        liveness,
        link_state: link.state(),
        link,
        request_limits,
        service,
        tls: link::tls_in_use(config),
        broker,
        marker,
        telemetry,
        served,
        rules,
        lock,
    };
    let inputs = ServiceInputs {
        text,
        rules: rules_at_start,
        store,
        replies,
        outputs,
    };
    Ok((built, inputs))
}

/// Locks the store against another daemon, before anything in its folder is touched and the broker is connected. On a
/// disk on which the folder can't be locked the daemon runs without a lock, as it runs where the disk can't be
/// written.
fn lock_store(config: &Config) -> Result<Option<StoreLock>, Fault> {
    match StoreLock::take(&config.store.path) {
        Ok(lock) => Ok(Some(lock)),
        // Not a fault of the configuration: systemd tries again, and succeeds once the other has ended.
        Err(held @ LockError::Held { .. }) => Err(Fault::failed(held)),
        Err(error) => {
            tracing::warn!(%error, "the store's folder can't be locked against another phi-edge");
            Ok(None)
        }
    }
}

/// Opens the durable store; where the disk fails, the store opens it later.
fn open_store(config: &Config, last_end: LastEnd, observers: Observers) -> Result<Store, Fault> {
    Store::open_observed(
        service::store(config),
        last_end,
        Box::new(move |took| observers.flushed(took)),
    )
    .map_err(|error| Fault::new(Exit::Config, error.to_string()))
}

/// Starts the broker in this process, if the configuration wants one.
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
