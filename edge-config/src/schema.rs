//! All keys: path, shape of the value, and default.

use crate::Shape;
use crate::shape::{
    absolute_path, at_least, auto_or_number, choice, duration, filters, host, http, log_filter, name, number,
    pool_base, size, text, texts, topic_base,
};

/// A key of the configuration.
#[derive(Debug, Clone, Copy)]
pub struct Key {
    /// The key with its sections, such as `mqtt.tls.ca`.
    pub path: &'static str,
    /// The shape of the value.
    pub shape: Shape,
    /// The built-in default.
    pub default: Preset,
    /// Whether the value is a secret, which is never shown.
    pub secret: bool,
}

/// A built-in default.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Preset {
    /// No value: the feature is off, or the value is derived (the default file says which).
    Unset,
    /// A text, also for durations, sizes, paths, addresses and choices.
    Text(&'static str),
    /// A whole number.
    Number(i64),
    /// On or off.
    Switch(bool),
    /// A list of texts.
    List(&'static [&'static str]),
}

/// Every known key, in the order in which they are shown.
pub fn known_keys() -> &'static [Key] {
    &KEYS
}

/// The sections that may stand before a key, and the array of rules.
pub(crate) const SECTIONS: [&str; 14] = [
    "node",
    "mqtt",
    "mqtt.tls",
    "model",
    "runtime",
    "runtime.plugin",
    "runtime.pace",
    "limits",
    "store",
    "metrics",
    "traces",
    "audit",
    "log",
    RULES,
];

/// The only name at the top level that is no section.
pub(crate) const RULES: &str = "rules";

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const TIB: u64 = 1 << 40;

const SECOND: u64 = 1_000;
const HOUR: u64 = 3_600 * SECOND;
const DAY: u64 = 24 * HOUR;

/// The largest MQTT packet (MQTT 5.0, section 1.5.5), rounded down to whole MiB.
const MAX_PACKET_BYTES: u64 = 255 * MIB;
/// The longest MQTT keep-alive (16 bits of seconds).
const MAX_KEEP_ALIVE_MS: u64 = 65_535 * SECOND;
/// The longest MQTT session expiry short of "never ends" (32 bits of seconds), in whole days.
const MAX_SESSION_EXPIRY_MS: u64 = 49_710 * DAY;

/// The most pixels of an image that a node can be set to decode, far beyond what cameras make.
const MAX_IMAGE_PIXELS: u64 = 1_000_000_000;

/// The largest budget of a client in a minute.
const MAX_CLIENT_BUDGET: u64 = 1_000_000_000;

pub(crate) const fn key(path: &'static str, shape: Shape, default: Preset) -> Key {
    Key {
        path,
        shape,
        default,
        secret: false,
    }
}

pub(crate) static KEYS: [Key; 83] = [
    key("node.name", name(), Preset::Unset),
    key("node.base", topic_base(), Preset::Text("phi-edge/v1/{node.name}")),
    key(
        "node.rules_dir",
        Shape::Path,
        Preset::Text("/etc/phi-edge/rules.d"),
    ),
    key("mqtt.host", host(), Preset::Text("localhost")),
    key("mqtt.port", number(1, 65_535), Preset::Unset),
    key("mqtt.username", text(), Preset::Unset),
    Key {
        path: "mqtt.password",
        shape: text(),
        default: Preset::Unset,
        secret: true,
    },
    key("mqtt.password_file", Shape::Path, Preset::Unset),
    key("mqtt.client_id", text(), Preset::Unset),
    key(
        "mqtt.keep_alive",
        duration(5 * SECOND, MAX_KEEP_ALIVE_MS),
        Preset::Text("30s"),
    ),
    key(
        "mqtt.session_expiry",
        duration(0, MAX_SESSION_EXPIRY_MS),
        Preset::Text("1d"),
    ),
    key("mqtt.pool", name(), Preset::Unset),
    key("mqtt.pool_base", pool_base(), Preset::Text("phi-edge/v1/pool")),
    key("mqtt.embedded", Shape::Switch, Preset::Switch(false)),
    key(
        "mqtt.embedded_listen",
        Shape::Address,
        Preset::Text("127.0.0.1:1883"),
    ),
    key("mqtt.embedded_password_file", Shape::Path, Preset::Unset),
    key("mqtt.embedded_acl_file", Shape::Path, Preset::Unset),
    key(
        "mqtt.reply_topics",
        filters(),
        Preset::List(&["{base}/response/#"]),
    ),
    key("mqtt.max_topic_levels", number(8, 65_535), Preset::Number(200)),
    key(
        "mqtt.max_packet",
        size(16 * KIB, MAX_PACKET_BYTES),
        Preset::Text("2MiB"),
    ),
    key("mqtt.tls.ca", Shape::Path, Preset::Unset),
    key("mqtt.tls.cert", Shape::Path, Preset::Unset),
    key("mqtt.tls.key", Shape::Path, Preset::Unset),
    key("model.path", Shape::Path, Preset::Text("/var/lib/phi-edge/model")),
    key("model.num_crops", number(1, 16), Preset::Number(4)),
    key(
        "model.vision_weights",
        choice(&["auto", "f32", "int8", "int4"]),
        Preset::Text("auto"),
    ),
    key(
        "runtime.provider",
        choice(&["auto", "cpu", "cuda", "directml", "webgpu", "plugin"]),
        Preset::Text("auto"),
    ),
    key("runtime.device_id", number(0, 1_023), Preset::Unset),
    key("runtime.device_memory", size(MIB, 16 * TIB), Preset::Unset),
    key("runtime.provider_options", Shape::Options, Preset::Unset),
    key("runtime.fallback", choice(&["cpu"]), Preset::Unset),
    key("runtime.allow_cpu_nodes", texts(), Preset::Unset),
    key("runtime.threads", auto_or_number(1, 1_024), Preset::Text("auto")),
    key("runtime.slots", number(1, 1_024), Preset::Number(4)),
    key(
        "runtime.kv_cache",
        choice(&["auto", "f32", "i8"]),
        Preset::Text("auto"),
    ),
    key(
        "runtime.isa",
        choice(&[
            "auto",
            "avx512vnni",
            "avxvnni",
            "avx2",
            "neondot",
            "neon",
            "scalar",
            "none",
        ]),
        Preset::Text("auto"),
    ),
    key("runtime.kv_memory", size(MIB, 16 * TIB), Preset::Unset),
    key("runtime.image_memory", size(0, TIB), Preset::Text("256MiB")),
    key("runtime.library", Shape::Path, Preset::Unset),
    key("runtime.prefill_chunk", number(1, 65_536), Preset::Number(512)),
    key("runtime.prefix_cache", Shape::Switch, Preset::Switch(true)),
    key("runtime.speculation", Shape::Switch, Preset::Switch(true)),
    key(
        "runtime.rope_policy",
        choice(&["switch", "pin"]),
        Preset::Text("switch"),
    ),
    key("runtime.system_prompts", texts(), Preset::Unset),
    key("runtime.prewarm", Shape::Switch, Preset::Switch(true)),
    key("runtime.unload_after", duration(SECOND, 30 * DAY), Preset::Unset),
    key("runtime.plugin.library", absolute_path(), Preset::Unset),
    key("runtime.plugin.options", Shape::Options, Preset::Unset),
    key("runtime.pace.max_temperature", number(20, 150), Preset::Unset),
    key("runtime.pace.zones", texts(), Preset::Unset),
    key("runtime.pace.least_share", number(1, 100), Preset::Number(25)),
    key("runtime.pace.battery_share", number(1, 100), Preset::Number(100)),
    key(
        "runtime.pace.every",
        duration(100, 10 * 60 * SECOND),
        Preset::Text("5s"),
    ),
    key("runtime.pace.sysfs", Shape::Path, Preset::Text("/sys")),
    key(
        "limits.max_deadline",
        duration(SECOND, 30 * DAY),
        Preset::Text("10m"),
    ),
    key(
        "limits.max_payload",
        size(KIB, MAX_PACKET_BYTES),
        Preset::Text("1MiB"),
    ),
    key("limits.images", number(0, 100), Preset::Number(8)),
    key(
        "limits.image_pixels",
        number(1, MAX_IMAGE_PIXELS),
        Preset::Number(25_000_000),
    ),
    key("limits.max_tokens", number(1, 1_048_576), Preset::Number(4_096)),
    key("limits.max_prompt_tokens", at_least(1), Preset::Unset),
    key("limits.queue", number(1, 1_000_000), Preset::Number(64)),
    key("limits.drain_grace", duration(0, HOUR), Preset::Text("20s")),
    key(
        "limits.session_ttl",
        duration(SECOND, 30 * DAY),
        Preset::Text("30m"),
    ),
    key("limits.session_memory", size(0, TIB), Preset::Text("16MiB")),
    key(
        "limits.client_requests_per_minute",
        number(1, MAX_CLIENT_BUDGET),
        Preset::Unset,
    ),
    key(
        "limits.client_tokens_per_minute",
        number(1, MAX_CLIENT_BUDGET),
        Preset::Unset,
    ),
    key("limits.rule_jobs", number(1, 1_000), Preset::Number(2)),
    key("store.path", Shape::Path, Preset::Text("/var/lib/phi-edge/store")),
    key("store.max_size", size(MIB, TIB), Preset::Text("1GiB")),
    key("store.max_rules_size", size(MIB, TIB), Preset::Text("256MiB")),
    key("store.keep_for", duration(0, 30 * DAY), Preset::Text("10m")),
    key(
        "store.keep_outcomes",
        number(0, 1_000_000),
        Preset::Number(10_000),
    ),
    key("store.keep_memory", size(0, TIB), Preset::Text("32MiB")),
    key(
        "store.when_failing",
        choice(&["refuse", "memory"]),
        Preset::Text("refuse"),
    ),
    key("metrics.listen", Shape::Address, Preset::Unset),
    key("traces.endpoint", http(), Preset::Unset),
    key("audit.path", Shape::Path, Preset::Unset),
    key("audit.texts", Shape::Switch, Preset::Switch(false)),
    key("audit.max_size", size(64 * KIB, TIB), Preset::Text("16MiB")),
    key("audit.keep", number(0, 1_000), Preset::Number(5)),
    key("log.level", log_filter(), Preset::Text("info")),
    key(
        "log.format",
        choice(&["text", "json", "journald"]),
        Preset::Text("text"),
    ),
    key("log.path", Shape::Path, Preset::Unset),
];
