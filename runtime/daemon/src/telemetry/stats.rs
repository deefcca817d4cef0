//! The retained message on `{base}/stats`.

use std::time::Duration;

use phi_edge_mqtt::{CounterReader, LinkCounters};
use phi_edge_rules::RuleCounters;
use phi_edge_service::{Service, Stats, StoreHealth};
use phi_edge_wire::Status;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::machine::process::resident_bytes;
use crate::machine::sysfs::Sysfs;
use crate::machine::thermal::{ThrottleReason, ThrottleState};

/// The minimum time between two publications.
const MIN_PUBLISH_INTERVAL: Duration = Duration::from_secs(2);
/// The maximum time between two publications, for the numbers that always change.
const MAX_PUBLISH_INTERVAL: Duration = Duration::from_mins(1);

/// The sources of the numbers.
pub(crate) struct StatsSources {
    pub(crate) service: Service,
    pub(crate) link: CounterReader,
    pub(crate) store: watch::Receiver<StoreHealth>,
    pub(crate) throttle: watch::Receiver<ThrottleState>,
    pub(crate) sysfs: Sysfs,
    pub(crate) status: watch::Receiver<Status>,
}

/// The numbers whose change calls for a publication.
#[derive(Debug, Default, PartialEq)]
struct StatsSample {
    stats: Stats,
    link: LinkCounters,
    rules: RuleCounters,
    model: ModelLoad,
    throttle: ThrottleState,
}

#[derive(Debug, Default, PartialEq)]
struct ModelLoad {
    loaded: bool,
    loads: u64,
    load_time: Duration,
    /// The instruction set of the kernels on the processor; none where ONNX Runtime's kernels alone compute.
    isa: Option<String>,
}

impl StatsSources {
    fn read(&self) -> StatsSample {
        let engine = self.service.engine_load();
        StatsSample {
            stats: self.service.stats(),
            link: self.link.read(),
            rules: self.service.rule_counters(),
            model: ModelLoad {
                loaded: engine.loaded,
                loads: engine.loads,
                load_time: engine.load_time,
                isa: self.status.borrow().isa.clone(),
            },
            throttle: *self.throttle.borrow(),
        }
    }
}

/// Publishes the numbers until it is aborted.
pub(crate) async fn publish(sources: StatsSources, out: watch::Sender<Value>) {
    let mut last: Option<(StatsSample, Instant)> = None;
    let mut ticks = interval(MIN_PUBLISH_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let now = sources.read();
        // A publication of this kind changes no counter: it does not call for the next one.
        let due = last
            .as_ref()
            .is_none_or(|(numbers, at)| *numbers != now || at.elapsed() >= MAX_PUBLISH_INTERVAL);
        if due {
            out.send_replace(encode(
                &now,
                &sources.store.borrow(),
                &sources.sysfs.temperatures(),
            ));
            last = Some((now, Instant::now()));
        }
    }
}

fn encode(numbers: &StatsSample, store: &StoreHealth, temperatures: &[(String, f64)]) -> Value {
    let StatsSample {
        stats,
        link,
        rules,
        model,
        throttle,
    } = numbers;
    let temperatures: Vec<Value> = temperatures
        .iter()
        .map(|(name, celsius)| json!({"name": name, "celsius": celsius}))
        .collect();
    json!({
        "queued": stats.queued,
        "running": stats.running,
        "slots": stats.slots,
        "tokens_per_s": (stats.tokens_per_s * 10.0).round() / 10.0,
        "latency": {"first_token_ms": stats.first_token.as_millis()},
        "served": stats.served,
        "failed": stats.failed,
        "refused": stats.refused,
        "outcomes_waiting": stats.outcomes_waiting,
        "undelivered": stats.undelivered,
        "replies_dropped": stats.replies_dropped,
        "link": link,
        "rules": {
            "rules": rules.rules,
            "messages": rules.messages,
            "late": rules.late,
            "repeated": rules.repeated,
            "redelivered": rules.redelivered,
            "dropped": rules.dropped,
            "held": rules.held,
            "held_bytes": rules.held_bytes,
            "windows": rules.windows,
            "waiting": rules.waiting,
            "events": rules.events,
            "failed": rules.failed,
            "window_bytes": rules.window_bytes,
            "events_bytes": rules.events_bytes,
            "events_expired": rules.events_expired,
            "events_superseded": rules.events_superseded,
            "events_dropped": rules.events_dropped,
        },
        "store": {"bytes": store.bytes, "flushes": store.flushes},
        "model": {
            "loaded": model.loaded,
            "loads": model.loads,
            "load_ms": model.load_time.as_millis(),
            "isa": model.isa,
        },
        "pace": {"share": throttle.share, "reason": throttle.reason.map(ThrottleReason::as_str)},
        "memory": {"rss_bytes": resident_bytes()},
        "temperatures": temperatures,
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may end at a fault")]

    use std::collections::BTreeSet;

    use super::*;

    /// The names of a message, or of the schema of one.
    fn names(value: &Value, inner: &str, at: &str, into: &mut BTreeSet<String>) {
        let object = if inner.is_empty() { value } else { &value[inner] };
        for (name, value) in object.as_object().into_iter().flatten() {
            let at = format!("{at}/{name}");
            names(value, inner, &at, into);
            into.insert(at);
        }
    }

    #[test]
    fn the_numbers_are_as_documented() {
        let stats = encode(&StatsSample::default(), &StoreHealth::default(), &[]);
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/asyncapi.json");
        let document: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        let (mut told, mut documented) = (BTreeSet::new(), BTreeSet::new());
        names(&stats, "", "", &mut told);
        names(
            &document["components"]["schemas"]["Stats"],
            "properties",
            "",
            &mut documented,
        );
        assert_eq!(told, documented);
    }
}
