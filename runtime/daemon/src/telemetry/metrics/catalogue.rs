//! The catalogue of all metrics: name, kind, labels and meaning.
//!
//! Metrics of answers have OpenTelemetry's names (semantic conventions for generative AI, in the form of Prometheus'
//! compatibility rules); others begin with `phi_edge_`, and those that every exporter has with `process_`.

use metrics::Unit;

/// The kind of a metric.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum MetricKind {
    /// A number that only grows, from 0 at the start of the process.
    Counter,
    /// A number that rises and falls.
    Gauge,
    /// Counts of values by these upper bounds.
    Histogram(&'static [f64]),
}

/// A metric.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Metric {
    pub(crate) name: &'static str,
    pub(crate) kind: MetricKind,
    pub(crate) unit: Unit,
    /// The labels with their possible values, for the documentation.
    #[cfg_attr(not(test), expect(dead_code, reason = "the documentation's test reads it"))]
    pub(crate) labels: &'static str,
    /// The meaning of the metric.
    pub(crate) help: &'static str,
}

/// The buckets of OpenTelemetry's `gen_ai.server.time_to_first_token`, extended, since small machines take long for
/// long prompts.
const FIRST_TOKEN_BUCKETS: &[f64] = &[
    0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 30.0, 60.0, 120.0, 300.0,
];
/// The buckets of OpenTelemetry's `gen_ai.server.time_per_output_token`, finer for short times.
const PER_TOKEN_BUCKETS: &[f64] = &[
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5,
];
/// The buckets of OpenTelemetry's `gen_ai.server.request.duration`, extended.
const REQUEST_BUCKETS: &[f64] = &[
    0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92, 163.84, 327.68,
    655.36,
];
/// The buckets of OpenTelemetry's `gen_ai.client.token.usage`, up to the length of a context.
const TOKEN_COUNT_BUCKETS: &[f64] = &[
    1.0, 4.0, 16.0, 64.0, 256.0, 1_024.0, 4_096.0, 16_384.0, 65_536.0, 262_144.0,
];
/// Buckets from a good SSD to a failing card.
const FLUSH_BUCKETS: &[f64] = &[
    0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
];

const GEN_AI_LABELS: &str = "`gen_ai_request_model`, `gen_ai_provider_name`, `gen_ai_operation_name`, `error_type` (an error code; absent of answers)";

macro_rules! metrics {
    ($($constant:ident = $name:literal, $kind:expr, $unit:ident, $labels:expr, $help:literal;)*) => {
        $(pub(crate) const $constant: Metric = Metric {
            name: $name,
            kind: $kind,
            unit: Unit::$unit,
            labels: $labels,
            help: $help,
        };)*
        /// All metrics, in the order of the documentation.
        pub(crate) const ALL: &[Metric] = &[$($constant),*];
    };
}

metrics! {
    FIRST_TOKEN_TIME = "gen_ai_server_time_to_first_token_seconds", MetricKind::Histogram(FIRST_TOKEN_BUCKETS), Seconds, GEN_AI_LABELS,
        "From a request's acceptance to the first token of its answer.";
    PER_TOKEN_TIME = "gen_ai_server_time_per_output_token_seconds", MetricKind::Histogram(PER_TOKEN_BUCKETS), Seconds, GEN_AI_LABELS,
        "Time for each token after the first, one value for each answer.";
    REQUEST_TIME = "gen_ai_server_request_duration_seconds", MetricKind::Histogram(REQUEST_BUCKETS), Seconds, GEN_AI_LABELS,
        "From a request's acceptance to its outcome.";
    TOKEN_USAGE = "gen_ai_client_token_usage", MetricKind::Histogram(TOKEN_COUNT_BUCKETS), Count,
        "as above, and `gen_ai_token_type` (`input`, `output`)",
        "Tokens of an answered request's prompt and of its answer; `_sum` counts them all.";
    QUEUE_WAIT = "phi_edge_queue_wait_seconds", MetricKind::Histogram(FIRST_TOKEN_BUCKETS), Seconds, "",
        "From a request's acceptance to its turn.";
    JOBS = "phi_edge_jobs_total", MetricKind::Counter, Count,
        "`outcome` (a finish reason or an error code), `source` (`client`, `rule`)",
        "Accepted requests that have their outcome.";
    REFUSED = "phi_edge_refused_total", MetricKind::Counter, Count, "`code` (an error code)",
        "Requests that were not accepted and whose sender was told.";
    CACHED_TOKENS = "phi_edge_cached_tokens_total", MetricKind::Counter, Count, "",
        "Prompt tokens that were remembered and needed no work.";
    GUESSED_TOKENS = "phi_edge_guessed_tokens_total", MetricKind::Counter, Count, "`right` (`true`, `false`)",
        "Tokens that were guessed (speculation), by whether the model chose them too.";
    QUEUE_LENGTH = "phi_edge_queue_length", MetricKind::Gauge, Count, "", "Accepted requests that wait for a slot.";
    QUEUE_LIMIT = "phi_edge_queue_limit", MetricKind::Gauge, Count, "",
        "The most that may wait (limits.queue); beyond it only clients below their share are taken in.";
    SLOTS = "phi_edge_slots", MetricKind::Gauge, Count, "`state` (`running`, `idle`)",
        "Answers that can be written at the same time (runtime.slots).";
    ENGINE_STEPS = "phi_edge_engine_steps_total", MetricKind::Counter, Count, "",
        "Steps of the engine: pieces of prompts, and rounds of one token for each answer.";
    IMAGE_CROPS = "phi_edge_image_crops_encoded_total", MetricKind::Counter, Count, "",
        "Crops of images that the image encoder has run for; what is remembered needs none.";
    IMAGE_BYTES = "phi_edge_image_bytes", MetricKind::Gauge, Bytes, "", "Memory of the features of images.";
    KV_BYTES = "phi_edge_kv_bytes", MetricKind::Gauge, Bytes, "`state` (`running`, `remembered`)",
        "Memory of keys and values: of answers that are being written, and of prompts that are remembered.";
    KV_LIMIT = "phi_edge_kv_limit_bytes", MetricKind::Gauge, Bytes, "",
        "The most of it (runtime.kv_memory).";
    MODEL_LOADED = "phi_edge_model_loaded", MetricKind::Gauge, Count, "",
        "1 while the model is in memory (runtime.unload_after).";
    MODEL_LOADS = "phi_edge_model_loads_total", MetricKind::Counter, Count, "", "The times that the model was loaded.";
    MODEL_LOAD_TIME = "phi_edge_model_load_seconds", MetricKind::Gauge, Seconds, "", "What the last of them took.";
    PACE_SHARE = "phi_edge_pace_share", MetricKind::Gauge, Count, "",
        "The share of the time in which is computed (runtime.pace), between 0 and 1.";
    PACE_SLOWED = "phi_edge_pace_slowed", MetricKind::Gauge, Count, "`reason` (`heat`, `battery`)",
        "1 for the reason why it is not all of the time.";
    STATE = "phi_edge_state", MetricKind::Gauge, Count, "`state` (`starting`, `ready`, `degraded`, `draining`, `offline`)",
        "1 for the state that the node is in, as its status says.";
    INFO = "phi_edge_info", MetricKind::Gauge, Count, "`version`, `model`, `provider`, `isa`",
        "Always 1; which program and model this is, and what computes.";
    LINK_UP = "phi_edge_link_up", MetricKind::Gauge, Count, "", "1 while the node is connected to its broker.";
    LINK_CONNECTIONS = "phi_edge_link_connections_total", MetricKind::Counter, Count, "", "Connections made to the broker.";
    LINK_MESSAGES = "phi_edge_link_messages_total", MetricKind::Counter, Count,
        "`what` (`received`, `ignored`, `refused`, `unanswerable`, `published`, `events`, `dead_letters`, \
         `undeliverable`, `chunks_dropped`, `qos0_dropped`, `deferred`)",
        "Messages from and to the broker.";
    OUTCOMES_WAITING = "phi_edge_outcomes_waiting", MetricKind::Gauge, Count, "",
        "Outcomes that the link has not taken yet.";
    UNDELIVERED = "phi_edge_undelivered", MetricKind::Gauge, Count, "",
        "Messages that are stored until the broker acknowledges them.";
    REPLIES_DROPPED = "phi_edge_replies_dropped_total", MetricKind::Counter, Count, "",
        "Refusals and dead letters that were dropped: the broker takes them slower than they come.";
    STORE_BYTES = "phi_edge_store_bytes", MetricKind::Gauge, Bytes, "", "What the store holds.";
    STORE_LIMIT = "phi_edge_store_limit_bytes", MetricKind::Gauge, Bytes, "", "The most that it may hold (store.max_size).";
    STORE_FREE = "phi_edge_store_free_bytes", MetricKind::Gauge, Bytes, "", "What is free on the store's disk; Unix only.";
    STORE_FAILING = "phi_edge_store_failing", MetricKind::Gauge, Count, "", "1 while the store can't be written.";
    STORE_FLUSH = "phi_edge_store_flush_seconds", MetricKind::Histogram(FLUSH_BUCKETS), Seconds, "",
        "How long a commit took that waited for the disk (fsync).";
    RULES = "phi_edge_rules", MetricKind::Gauge, Count, "", "Rules there are.";
    RULE_MESSAGES = "phi_edge_rule_messages_total", MetricKind::Counter, Count,
        "`result` (`counted`, `late`, `repeated`, `redelivered`, `dropped`)",
        "Messages of machines, once for each rule that takes them.";
    RULE_HELD = "phi_edge_rule_messages_held", MetricKind::Gauge, Count, "", "Messages in windows that are open.";
    RULE_HELD_BYTES = "phi_edge_rule_held_bytes", MetricKind::Gauge, Bytes, "", "What these messages take.";
    RULE_HELD_LIMIT = "phi_edge_rule_held_limit_bytes", MetricKind::Gauge, Bytes, "",
        "The most that they may take (store.max_rules_size).";
    RULE_WINDOW_BYTES = "phi_edge_rule_window_bytes", MetricKind::Gauge, Bytes, "",
        "What open windows hold in memory beside these messages; it has the same limit.";
    RULE_WINDOWS = "phi_edge_rule_windows_total", MetricKind::Counter, Count, "", "Windows that have ended.";
    RULE_WAITING = "phi_edge_rule_events_waiting", MetricKind::Gauge, Count, "", "Events that wait for their words.";
    RULE_EVENTS = "phi_edge_rule_events_total", MetricKind::Counter, Count, "`rule`, `outcome` (`ok`, or an error code)",
        "Events that were handed on.";
    RULE_UNPUBLISHED = "phi_edge_rule_events_unpublished_total", MetricKind::Counter, Count,
        "`reason` (`expired`, `superseded`, `dropped`)", "Events that were not published: the broker was away too long.";
    RULE_EVENT_BYTES = "phi_edge_rule_events_outgoing_bytes", MetricKind::Gauge, Bytes, "",
        "What the events hold that wait for the broker.";
    AUDIT_LINES = "phi_edge_audit_lines_total", MetricKind::Counter, Count, "",
        "Lines of the audit that were written; only with audit.path.";
    AUDIT_LOST = "phi_edge_audit_lost_total", MetricKind::Counter, Count, "",
        "Lines that were not: the disk was full, failing or too slow; only with audit.path.";
    CERTIFICATE_END = "phi_edge_certificate_end_timestamp_seconds", MetricKind::Gauge, Seconds, "",
        "When the first of the link's certificates ends, since 1970; only with mqtt.tls.";
    TEMPERATURE = "phi_edge_temperature_celsius", MetricKind::Gauge, Count, "`zone`",
        "The hottest reading of the machine's thermal zones of each type, NaN while a type has none; Linux only.";
    RESIDENT = "process_resident_memory_bytes", MetricKind::Gauge, Bytes, "", "Memory of the process that is in RAM; Linux only.";
    // By its name a counter; but the exporter's counters hold whole numbers only.
    CPU_TIME = "process_cpu_seconds_total", MetricKind::Gauge, Seconds, "",
        "Processor time of the process; Linux only.";
    OPEN_FILES = "process_open_fds", MetricKind::Gauge, Count, "", "Open file descriptors; Linux only.";
    START_TIME = "process_start_time_seconds", MetricKind::Gauge, Seconds, "", "When the process started, since 1970.";
}

/// The table of docs/monitoring.md.
#[cfg(test)]
pub(crate) fn table() -> String {
    use std::fmt::Write as _;

    let mut rows = String::from("| metric | kind | labels | meaning |\n| --- | --- | --- | --- |\n");
    for metric in ALL {
        let kind = match metric.kind {
            MetricKind::Counter => "counter",
            MetricKind::Gauge => "gauge",
            MetricKind::Histogram(_) => "histogram",
        };
        let labels = if metric.labels.is_empty() {
            "–"
        } else {
            metric.labels
        };
        // Writing to a String can't fail.
        let _ = writeln!(
            rows,
            "| `{}` | {kind} | {labels} | {} |",
            metric.name, metric.help
        );
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documentation_lists_every_metric() {
        let page = include_str!("../../../../../docs/monitoring.md");
        let table = table();
        assert!(
            page.contains(&table),
            "docs/monitoring.md must hold this table:\n{table}"
        );
    }

    #[test]
    fn names_are_in_prometheus_form() {
        for metric in ALL {
            let total = metric.name.ends_with("_total");
            assert!(total || metric.kind != MetricKind::Counter, "{}", metric.name);
            if let MetricKind::Histogram(bounds) = metric.kind {
                assert!(bounds.is_sorted(), "{}", metric.name);
            }
        }
    }
}
