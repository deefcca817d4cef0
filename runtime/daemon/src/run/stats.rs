//! The retained numbers on `{base}/stats`.

use std::time::Duration;

use phi_edge_mqtt::{CounterReader, LinkCounters};
use phi_edge_service::rules::RuleCounters;
use phi_edge_service::{Service, Stats, StoreHealth};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval};

/// The least time between two publications.
const PACE: Duration = Duration::from_secs(2);
/// Published at least this often, for the numbers that always change.
const REST: Duration = Duration::from_mins(1);

/// Publishes while the service lives.
pub(crate) async fn publish(
    service: Service,
    out: watch::Sender<Value>,
    link: CounterReader,
    store: watch::Receiver<StoreHealth>,
) {
    let mut last: Option<(Stats, LinkCounters, RuleCounters, Instant)> = None;
    let mut ticks = interval(PACE);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let (now, seen, rules) = (service.stats(), link.read(), service.rule_counters());
        // A publication of this kind changes no counter: it does not call for the next one.
        let due = last.is_none_or(|(stats, counters, of_rules, at)| {
            stats != now || counters != seen || of_rules != rules || at.elapsed() >= REST
        });
        if due {
            last = Some((now, seen, rules, Instant::now()));
            out.send_replace(encode(&now, &seen, &rules, &store.borrow()));
        }
    }
}

fn encode(stats: &Stats, link: &LinkCounters, rules: &RuleCounters, store: &StoreHealth) -> Value {
    let temperatures: Vec<Value> = temperatures()
        .into_iter()
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
        },
        "store": {"bytes": store.bytes, "flushes": store.flushes},
        "memory": {"rss_bytes": resident_bytes()},
        "temperatures": temperatures,
    })
}

/// Memory that this process has in RAM; Linux only.
pub(crate) fn resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

/// Degrees Celsius of the thermal zones that have a reading; Linux only.
pub(crate) fn temperatures() -> Vec<(String, f64)> {
    let Ok(zones) = std::fs::read_dir("/sys/class/thermal") else {
        return Vec::new();
    };
    let mut readings: Vec<(String, f64)> = zones
        .flatten()
        .filter_map(|zone| {
            let milli: f64 = std::fs::read_to_string(zone.path().join("temp"))
                .ok()?
                .trim()
                .parse()
                .ok()?;
            let name = std::fs::read_to_string(zone.path().join("type")).ok()?;
            Some((name.trim().to_owned(), milli / 1000.0))
        })
        .collect();
    readings.sort_by(|a, b| a.0.cmp(&b.0));
    readings
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
        let stats = encode(
            &Stats::default(),
            &LinkCounters::default(),
            &RuleCounters::default(),
            &StoreHealth::default(),
        );
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
