//! Telemetry: metrics, audit, traces, stats and logging. Metrics, audit and traces are built before what they
//! observe.

mod audit;
pub(crate) mod logging;
mod metrics;
mod rotated_file;
pub(crate) mod stats;
mod traces;
mod worker;

use std::sync::Arc;
use std::time::SystemTime;

use phi_edge_config::{Config, Limits};
use phi_edge_models::ModelDir;
use phi_edge_mqtt::Link;
use phi_edge_service::{Observer, Observers, Prompts, Service, StoreHealth};
use phi_edge_wire::Status;
use tokio::sync::{mpsc, oneshot, watch};

use crate::exit::{Exit, Fault};
use crate::machine::sysfs::Sysfs;
use crate::machine::thermal::ThrottleState;
use crate::setup::link;
use audit::{Audit, AuditConfig};
use metrics::{Bounds, MetricsSources, Recorder, Zones, liveness_probe};
use traces::Traces;

pub(crate) use metrics::Server as MetricsServer;

/// The observers of the service. Dropping it closes the audit and the traces.
pub(crate) struct Telemetry<'a> {
    config: &'a Config,
    started: SystemTime,
    recorder: Option<Arc<Recorder>>,
    audit: Option<Arc<Audit>>,
    traces: Option<Arc<Traces>>,
}

/// The parts of the daemon that metrics are read from.
pub(crate) struct MetricsInputs<'a> {
    /// None while the model loads.
    pub(crate) service: watch::Receiver<Option<Service>>,
    pub(crate) status: watch::Receiver<Status>,
    pub(crate) link: &'a Link,
    pub(crate) store: watch::Receiver<StoreHealth>,
    pub(crate) throttle: watch::Receiver<ThrottleState>,
    pub(crate) limits: watch::Receiver<Limits>,
}

impl<'a> Telemetry<'a> {
    pub(crate) fn new(
        config: &'a Config,
        model: &ModelDir,
        prompts: Arc<dyn Prompts>,
    ) -> Result<Self, Fault> {
        let recorder = match config.metrics.listen {
            Some(_) => Some(Arc::new(Recorder::new(&model.name())?)),
            None => None,
        };
        let audit = match &config.audit.path {
            Some(path) => Some(Arc::new(audit(config, path, model, prompts)?)),
            None => None,
        };
        let traces = match &config.traces.endpoint {
            Some(endpoint) => {
                let traces = Traces::start(endpoint, &config.node.name, &model.name());
                Some(Arc::new(traces.map_err(|error| {
                    Fault::failed(format!("the thread of traces can't be started: {error}"))
                })?))
            }
            None => None,
        };
        Ok(Self {
            config,
            started: SystemTime::now(),
            recorder,
            audit,
            traces,
        })
    }

    /// The observers for the service and the store.
    pub(crate) fn observers(&self) -> Observers {
        let recorder = self
            .recorder
            .clone()
            .map(|recorder| recorder as Arc<dyn Observer>);
        let audit = self.audit.clone().map(|audit| audit as Arc<dyn Observer>);
        let traces = self.traces.clone().map(|traces| traces as Arc<dyn Observer>);
        Observers::new(recorder.into_iter().chain(audit).chain(traces).collect())
    }

    /// Serves metrics and health, if the configuration wants it. The main loop must answer the probes that the
    /// receiver yields.
    pub(crate) async fn serve(
        &self,
        inputs: MetricsInputs<'_>,
    ) -> Result<(Option<MetricsServer>, mpsc::Receiver<oneshot::Sender<()>>), Fault> {
        let (liveness, probes) = liveness_probe();
        let (Some(address), Some(recorder)) = (self.config.metrics.listen, &self.recorder) else {
            return Ok((None, probes));
        };
        let config = self.config;
        let sources = MetricsSources {
            recorder: Arc::clone(recorder),
            service: inputs.service,
            status: inputs.status,
            link: inputs.link.state(),
            link_counters: inputs.link.watch_counters(),
            store: inputs.store,
            liveness,
            tls: link::tls_in_use(config),
            audit: self.audit.as_ref().map(|audit| audit.counts()),
            limits: inputs.limits,
            bounds: Bounds {
                store: config.store.max_size.bytes(),
                store_folder: config.store.path.clone(),
                rules: config.store.max_rules_size.bytes(),
            },
            throttle: inputs.throttle,
            sysfs: Sysfs::at(&config.runtime.pace.sysfs),
            zones: Zones::default(),
            started: self.started,
            certificates: parking_lot::Mutex::default(),
        };
        Ok((Some(MetricsServer::start(address, sources).await?), probes))
    }
}

impl Drop for Telemetry<'_> {
    fn drop(&mut self) {
        if let Some(audit) = &self.audit {
            audit.close();
        }
        if let Some(traces) = &self.traces {
            traces.close();
        }
    }
}

fn audit(
    config: &Config,
    path: &std::path::Path,
    model: &ModelDir,
    prompts: Arc<dyn Prompts>,
) -> Result<Audit, Fault> {
    let wanted = AuditConfig {
        path: path.to_path_buf(),
        texts: config.audit.texts,
        max_size: config.audit.max_size.bytes(),
        keep: config.audit.keep,
        node: config.node.name.clone(),
        digests: config.store.path.join("model-digests.json"),
    };
    let fault = |error: &dyn std::fmt::Display| {
        let message = format!("{}: can't be opened: {error} (audit.path)", path.display());
        Fault::new(Exit::Config, message)
    };
    let model = ModelDir::open(model.path()).map_err(|error| fault(&error))?;
    Audit::start(wanted, model, prompts).map_err(|error| fault(&error))
}
