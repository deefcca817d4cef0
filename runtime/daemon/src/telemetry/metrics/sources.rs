//! The sources of the metrics that are read at each scrape, and of the health checks.

use parking_lot::Mutex;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use phi_edge_config::Limits;
use phi_edge_mqtt::{CounterReader, LinkState, TlsFiles};
use phi_edge_service::{Service, StoreHealth};
use phi_edge_wire::{State, Status};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, timeout};

use super::catalogue as c;
use super::recorder::{Recorder, float, float64};
use super::zones::Zones;
use crate::machine::process;
use crate::machine::sysfs::Sysfs;
use crate::machine::thermal::{ThrottleReason, ThrottleState};
use crate::telemetry::audit::AuditCounts;

/// The time limit for the main loop to answer the liveness probe.
const LIVENESS_TIMEOUT: Duration = Duration::from_secs(2);
/// The time for which the end of the certificates is cached, so that their files are not read at each scrape.
const CERTIFICATE_CACHE_TIME: Duration = Duration::from_mins(1);

/// The sending end of the liveness probe, which the daemon's main loop answers.
pub(crate) type LivenessProbe = mpsc::Sender<oneshot::Sender<()>>;

/// Both ends of a liveness probe. At most one probe is queued; further senders wait.
pub(crate) fn liveness_probe() -> (LivenessProbe, mpsc::Receiver<oneshot::Sender<()>>) {
    mpsc::channel(1)
}

/// The parts of the daemon that metrics are read from.
pub(crate) struct MetricsSources {
    pub(crate) recorder: Arc<Recorder>,
    /// None while the model loads.
    pub(crate) service: watch::Receiver<Option<Service>>,
    pub(crate) status: watch::Receiver<Status>,
    pub(crate) link: watch::Receiver<LinkState>,
    pub(crate) link_counters: CounterReader,
    pub(crate) store: watch::Receiver<StoreHealth>,
    pub(crate) liveness: LivenessProbe,
    pub(crate) tls: Option<TlsFiles>,
    pub(crate) audit: Option<AuditCounts>,
    /// The limits of the configuration that was read last.
    pub(crate) limits: watch::Receiver<Limits>,
    pub(crate) bounds: Bounds,
    pub(crate) throttle: watch::Receiver<ThrottleState>,
    pub(crate) sysfs: Sysfs,
    pub(crate) zones: Zones,
    pub(crate) started: SystemTime,
    pub(crate) certificates: Mutex<Option<(Instant, Option<SystemTime>)>>,
}

/// Further bounds of the configuration, each shown beside what it bounds.
pub(crate) struct Bounds {
    pub(crate) store: u64,
    pub(crate) store_folder: PathBuf,
    pub(crate) rules: u64,
}

impl MetricsSources {
    /// All metrics in Prometheus' text format.
    pub(crate) fn metrics(&self) -> String {
        self.state();
        self.link();
        self.store();
        self.machine();
        self.throttle();
        // A copy, so that the channel is not locked while the ledger is read.
        let service = self.service.borrow().clone();
        if let Some(service) = service {
            self.service(&service);
            self.rules(&service);
        }
        if let Some(audit) = &self.audit {
            self.count(&c::AUDIT_LINES, audit.written());
            self.count(&c::AUDIT_LOST, audit.lost());
        }
        self.recorder.render()
    }

    /// The check of `/readyz`: fails, with the reason, while the daemon does not take requests.
    pub(crate) fn ready(&self) -> Result<(), String> {
        let status = self.status.borrow();
        if status.state == State::Ready {
            return Ok(());
        }
        let state = status.state.as_str();
        Err(match &status.reason {
            Some(reason) => format!("{state}: {reason}"),
            None => state.to_owned(),
        })
    }

    /// The check of `/healthz`: fails, with the reason, if the process should be restarted.
    pub(crate) async fn alive(&self) -> Result<(), String> {
        let lost = self
            .service
            .borrow()
            .as_ref()
            .is_some_and(Service::is_engine_lost);
        if lost {
            return Err("the engine is lost".to_owned());
        }
        // During start and shutdown the main loop does not run; both are bounded by themselves.
        if !matches!(self.status.borrow().state, State::Ready | State::Degraded) {
            return Ok(());
        }
        let answered = async {
            let (answer, answered) = oneshot::channel();
            self.liveness.send(answer).await.ok()?;
            answered.await.ok()
        };
        match timeout(LIVENESS_TIMEOUT, answered).await {
            Ok(Some(())) => Ok(()),
            _ => Err("the main loop does not answer".to_owned()),
        }
    }

    /// See [`Recorder::upkeep`].
    pub(crate) fn upkeep(&self) {
        self.recorder.upkeep();
    }

    fn set(&self, metric: &c::Metric, value: f64) {
        self.recorder.gauge(metric, &[]).set(value);
    }

    fn set_one(&self, metric: &c::Metric, label: &'static str, of: &str, value: f64) {
        self.recorder.gauge(metric, &[(label, of)]).set(value);
    }

    fn count(&self, metric: &c::Metric, value: u64) {
        self.recorder.counter(metric, &[]).absolute(value);
    }

    fn count_one(&self, metric: &c::Metric, label: &'static str, of: &str, value: u64) {
        self.recorder.counter(metric, &[(label, of)]).absolute(value);
    }

    fn state(&self) {
        let status = self.status.borrow().clone();
        for state in State::ALL {
            self.set_one(
                &c::STATE,
                "state",
                state.as_str(),
                as_gauge(state == status.state),
            );
        }
        // Only once the model is loaded: a series without its provider could not be removed later.
        if let Some(provider) = &status.provider {
            let labels = [
                ("version", status.version.as_str()),
                ("model", self.recorder.model()),
                ("provider", provider.as_str()),
                ("isa", status.isa.as_deref().unwrap_or("none")),
            ];
            self.recorder.gauge(&c::INFO, &labels).set(1.0);
        }
    }

    fn service(&self, service: &Service) {
        let stats = service.stats();
        let load = service.engine_load();
        self.set(&c::QUEUE_LENGTH, float(stats.queued));
        self.set(&c::QUEUE_LIMIT, float(self.limits.borrow().queue));
        self.set_one(&c::SLOTS, "state", "running", float(stats.running));
        let idle = stats.slots.saturating_sub(stats.running);
        self.set_one(&c::SLOTS, "state", "idle", float(idle));
        self.count(&c::ENGINE_STEPS, load.steps);
        self.count(&c::IMAGE_CROPS, load.crops_encoded);
        self.set(&c::IMAGE_BYTES, float64(load.image_bytes));
        self.set(&c::MODEL_LOADED, as_gauge(load.loaded));
        self.count(&c::MODEL_LOADS, load.loads);
        self.set(&c::MODEL_LOAD_TIME, load.load_time.as_secs_f64());
        self.set_one(&c::KV_BYTES, "state", "running", float64(load.kv.running));
        self.set_one(&c::KV_BYTES, "state", "remembered", float64(load.kv.remembered));
        if let Some(budget) = load.kv.budget {
            self.set(&c::KV_LIMIT, float64(budget));
        }
        self.set(&c::OUTCOMES_WAITING, float(stats.outcomes_waiting));
        self.set(&c::UNDELIVERED, float(stats.undelivered));
        self.count(&c::REPLIES_DROPPED, stats.replies_dropped);
    }

    fn rules(&self, service: &Service) {
        let rules = service.rule_counters();
        self.set(&c::RULES, float(rules.rules));
        for (result, count) in [
            ("counted", rules.messages),
            ("late", rules.late),
            ("repeated", rules.repeated),
            ("redelivered", rules.redelivered),
            ("dropped", rules.dropped),
        ] {
            self.count_one(&c::RULE_MESSAGES, "result", result, count);
        }
        self.set(&c::RULE_HELD, float(rules.held));
        self.set(&c::RULE_HELD_BYTES, float64(rules.held_bytes));
        self.set(&c::RULE_HELD_LIMIT, float64(self.bounds.rules));
        self.count(&c::RULE_WINDOWS, rules.windows);
        self.set(&c::RULE_WAITING, float(rules.waiting));
        self.set(&c::RULE_WINDOW_BYTES, float64(rules.window_bytes));
        self.set(&c::RULE_EVENT_BYTES, float64(rules.events_bytes));
        for (reason, count) in [
            ("expired", rules.events_expired),
            ("superseded", rules.events_superseded),
            ("dropped", rules.events_dropped),
        ] {
            self.count_one(&c::RULE_UNPUBLISHED, "reason", reason, count);
        }
    }

    fn link(&self) {
        let up = *self.link.borrow() == LinkState::Up;
        self.set(&c::LINK_UP, as_gauge(up));
        let seen = self.link_counters.read();
        self.count(&c::LINK_CONNECTIONS, seen.connections);
        for (what, count) in [
            ("received", seen.received),
            ("ignored", seen.ignored),
            ("refused", seen.refused),
            ("unanswerable", seen.unanswerable),
            ("published", seen.published),
            ("events", seen.events),
            ("dead_letters", seen.dead_letters),
            ("undeliverable", seen.undeliverable),
            ("chunks_dropped", seen.chunks_dropped),
            ("qos0_dropped", seen.qos0_dropped),
            ("deferred", seen.deferred),
        ] {
            self.count_one(&c::LINK_MESSAGES, "what", what, count);
        }
        if let Some(end) = self.certificates_end() {
            self.set(&c::CERTIFICATE_END, process::since_1970(end));
        }
    }

    fn certificates_end(&self) -> Option<SystemTime> {
        let tls = self.tls.as_ref()?;
        let mut known = self.certificates.lock();
        match *known {
            Some((looked, end)) if looked.elapsed() < CERTIFICATE_CACHE_TIME => end,
            _ => {
                let end = tls.first_to_end().ok().flatten().map(|(_, end)| end);
                *known = Some((Instant::now(), end));
                end
            }
        }
    }

    fn store(&self) {
        let health = self.store.borrow().clone();
        self.set(&c::STORE_BYTES, float64(health.bytes));
        self.set(&c::STORE_LIMIT, float64(self.bounds.store));
        self.set(&c::STORE_FAILING, as_gauge(health.failing.is_some()));
        if let Some(free) = process::free_bytes(&self.bounds.store_folder) {
            self.set(&c::STORE_FREE, float64(free));
        }
    }

    fn throttle(&self) {
        let throttle = *self.throttle.borrow();
        self.set(&c::PACE_SHARE, f64::from(throttle.share) / 100.0);
        for reason in ThrottleReason::ALL {
            let is = as_gauge(throttle.reason == Some(reason));
            self.set_one(&c::PACE_SLOWED, "reason", reason.as_str(), is);
        }
    }

    fn machine(&self) {
        self.set(&c::START_TIME, process::since_1970(self.started));
        if let Some(bytes) = process::resident_bytes() {
            self.set(&c::RESIDENT, float64(bytes));
        }
        if let Some(files) = process::open_files() {
            self.set(&c::OPEN_FILES, float(files));
        }
        if let Some(time) = process::cpu_time() {
            self.set(&c::CPU_TIME, time.as_secs_f64());
        }
        for (zone, celsius) in self.zones.hottest(self.sysfs.temperatures()) {
            self.set_one(&c::TEMPERATURE, "zone", &zone, celsius);
        }
    }
}

fn as_gauge(is: bool) -> f64 {
    if is { 1.0 } else { 0.0 }
}
