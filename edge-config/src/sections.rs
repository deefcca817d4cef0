//! The types of the configuration: one struct for each section, every value checked.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::{ByteSize, Rule, Secret, Threads, TimeSpan};

/// The whole configuration. `default.toml` says what each key means; the comments here add what callers need.
///
/// The daemon passes the values to the crates in its `setup/`. A reload applies all of `[limits]`, and of the other
/// keys those that `reload.rs` lists.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The identity of the node.
    pub node: Node,
    /// The link to the broker.
    pub mqtt: Mqtt,
    /// The model.
    pub model: Model,
    /// The settings of the model's execution.
    pub runtime: Runtime,
    /// The limits of requests.
    pub limits: Limits,
    /// The store of accepted requests.
    pub store: Store,
    /// Prometheus metrics.
    #[serde(default)]
    pub metrics: Metrics,
    /// Traces.
    #[serde(default)]
    pub traces: Traces,
    /// The audit.
    pub audit: Audit,
    /// Logging.
    pub log: Log,
    /// The rules of all files, in order of appearance; a later layer's rule replaces one of the same name, and those of
    /// `node.rules_dir` come last.
    #[serde(skip)]
    pub rules: Vec<Rule>,
}

/// `[node]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Node {
    /// The node's name; one topic level.
    pub name: String,
    /// The prefix of `/request`; the placeholder is already filled in.
    pub base: String,
    /// The folder of rule files; it need not exist.
    pub rules_dir: PathBuf,
}

/// `[mqtt]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mqtt {
    /// The broker's host name or address.
    pub host: String,
    /// The broker's port; 1883 or, with TLS, 8883 where nothing else is set.
    pub port: u16,
    /// The user at the broker.
    pub username: Option<String>,
    /// The password in clear, if the operator insists; never together with `password_file`.
    pub password: Option<Secret>,
    /// The file that holds the password.
    pub password_file: Option<PathBuf>,
    /// The MQTT client id; none means the node's name and a stable machine id, which the caller knows.
    pub client_id: Option<String>,
    /// The keep-alive, in whole seconds.
    pub keep_alive: TimeSpan,
    /// The time for which the broker keeps the session of an absent node, in whole seconds.
    pub session_expiry: TimeSpan,
    /// TLS; none of its files means a plain connection.
    #[serde(default)]
    pub tls: Tls,
    /// The pool whose requests this node shares.
    pub pool: Option<String>,
    /// The prefix of `/{pool}/request`.
    pub pool_base: String,
    /// Whether the broker runs in this process; `host` and `port` are then not used.
    pub embedded: bool,
    /// The address on which the embedded broker listens; port 0 means any free one.
    pub embedded_listen: SocketAddr,
    /// Users and password hashes of the embedded broker.
    pub embedded_password_file: Option<PathBuf>,
    /// Access rights of the embedded broker.
    pub embedded_acl_file: Option<PathBuf>,
    /// The filters one of which a request's response topic must match; placeholders are already filled in.
    pub reply_topics: Vec<String>,
    /// The maximum number of topic levels that the broker accepts, counted by the `/`.
    pub max_topic_levels: usize,
    /// The maximum size of a packet from the broker, which is told of it.
    pub max_packet: ByteSize,
}

/// `[mqtt.tls]`
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tls {
    /// The certificate authorities of the broker, PEM.
    pub ca: Option<PathBuf>,
    /// The client's certificate chain, PEM; always together with `key`.
    pub cert: Option<PathBuf>,
    /// The client's private key, PEM.
    pub key: Option<PathBuf>,
}

impl Tls {
    /// Whether the link uses TLS: `ca` is then set.
    pub fn is_on(&self) -> bool {
        self.ca.is_some()
    }
}

/// `[model]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Model {
    /// The model directory.
    pub path: PathBuf,
    /// The most crops that an image of detail `auto` is cut into, beside its view as a whole.
    pub num_crops: usize,
    /// The type of the vision encoder's weights.
    pub vision_weights: VisionWeights,
}

/// The type to which the weights of the vision encoder are converted at load. The key `model.vision_weights` in `schema.rs`
/// lists the names that are accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum VisionWeights {
    /// The smallest type with a small loss that the provider computes with.
    Auto,
    /// As the graph has them.
    F32,
    /// 8 bits.
    Int8,
    /// 4 bits.
    Int4,
}

/// `[runtime]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Runtime {
    /// The execution provider.
    pub provider: Provider,
    /// The device of the provider, counted from 0; none means the provider's own choice.
    pub device_id: Option<u32>,
    /// The maximum memory of the device for keys and values; none means `kv_memory`, and without it what the device has free.
    pub device_memory: Option<ByteSize>,
    /// The options that are passed on to the provider.
    pub provider_options: Option<BTreeMap<String, String>>,
    /// The provider to take where `provider` is not available; none means that the node does not start.
    pub fallback: Option<Fallback>,
    /// Further nodes of the graph that may run on the processor beside another provider.
    pub allow_cpu_nodes: Option<Vec<String>>,
    /// The plugin provider.
    #[serde(default)]
    pub plugin: Plugin,
    /// Threads of one step.
    pub threads: Threads,
    /// The number of sequences that run at once.
    pub slots: usize,
    /// The type of keys and values.
    pub kv_cache: KvCache,
    /// The instruction set of the kernels on the processor.
    pub isa: InstructionSet,
    /// The memory budget of keys and values; none means a share of the free memory.
    pub kv_memory: Option<ByteSize>,
    /// The maximum memory of image features that are kept for later prompts.
    pub image_memory: ByteSize,
    /// The ONNX Runtime library; none means that it is searched for.
    pub library: Option<PathBuf>,
    /// The maximum number of prompt tokens of one step.
    pub prefill_chunk: usize,
    /// Whether common prefixes of prompts are computed once.
    pub prefix_cache: bool,
    /// Whether draft tokens are proposed from the text so far and verified together.
    pub speculation: bool,
    /// When the rope factors of a sequence are chosen.
    pub rope_policy: RopePolicy,
    /// System prompts that are computed at start and kept.
    pub system_prompts: Option<Vec<String>>,
    /// Whether the model is run once, and loaded ahead, before it is needed.
    pub prewarm: bool,
    /// The idle time after which the model is unloaded; none means never.
    pub unload_after: Option<TimeSpan>,
    /// The settings of the thermal and battery governor.
    pub pace: Pace,
}

/// `[runtime.plugin]`
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plugin {
    /// The library of the provider, an absolute path; none means that there is no plugin provider.
    pub library: Option<PathBuf>,
    /// The options that are passed on to the provider.
    pub options: Option<BTreeMap<String, String>>,
}

/// The provider to take where `runtime.provider` is not available. The key `runtime.fallback` in `schema.rs` lists the names
/// that are accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Fallback {
    /// The processor.
    Cpu,
}

/// `[runtime.pace]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pace {
    /// The temperature limit in degrees Celsius; none means no limit.
    pub max_temperature: Option<u32>,
    /// The thermal zones that count, by type; none means all.
    pub zones: Option<Vec<String>>,
    /// The minimum share of the time that heat leaves, in percent.
    pub least_share: u32,
    /// The share of the time on battery, in percent.
    pub battery_share: u32,
    /// The time between two readings.
    pub every: TimeSpan,
    /// The root of sysfs.
    pub sysfs: PathBuf,
}

/// An ONNX Runtime execution provider. The key `runtime.provider` in `schema.rs` lists the names that are accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Provider {
    /// The best provider that library and machine have.
    Auto,
    /// The processor.
    Cpu,
    /// An NVIDIA GPU.
    Cuda,
    /// A GPU by DirectML (Windows).
    DirectMl,
    /// A GPU by WebGPU, over Vulkan or Direct3D 12.
    WebGpu,
    /// The provider in the library `runtime.plugin.library`.
    Plugin,
}

/// The requested type of keys and values. The key `runtime.kv_cache` in `schema.rs` lists the names that are accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KvCache {
    /// 8 bits where they are possible, else the graph's own type.
    Auto,
    /// The graph's own type.
    F32,
    /// 8 bits; an error where they are not possible.
    I8,
}

/// The requested instruction set of the kernels on the processor. The key `runtime.isa` in `schema.rs` lists the names that are
/// accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum InstructionSet {
    /// The fastest that the processor has.
    Auto,
    /// AVX-512 with VNNI.
    Avx512Vnni,
    /// AVX2 with dot products of bytes.
    AvxVnni,
    /// AVX2, FMA and F16C.
    Avx2,
    /// NEON with dot products of bytes.
    NeonDot,
    /// NEON.
    Neon,
    /// No vector instructions: the reference.
    Scalar,
    /// None: ONNX Runtime's kernels alone.
    None,
}

/// The moment at which LongRoPE's factors are chosen for a sequence. The key `runtime.rope_policy` in `schema.rs` lists the
/// names that are accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RopePolicy {
    /// By its tokens so far; a sequence that crosses the boundary is recomputed.
    Switch,
    /// Before its first token, by what it may come to have.
    Pin,
}

/// `[limits]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// The longest time from arrival to answer.
    pub max_deadline: TimeSpan,
    /// The largest request payload; `mqtt.max_packet` is larger.
    pub max_payload: ByteSize,
    /// The maximum number of images of a request; 0 refuses images.
    pub images: usize,
    /// The maximum number of pixels of an image.
    pub image_pixels: u64,
    /// The maximum number of new tokens of a request.
    pub max_tokens: usize,
    /// The maximum number of tokens of a prompt; none means the context's length.
    pub max_prompt_tokens: Option<usize>,
    /// The maximum number of waiting requests.
    pub queue: usize,
    /// The grace period of running answers at shutdown.
    pub drain_grace: TimeSpan,
    /// The time for which an idle session is kept.
    pub session_ttl: TimeSpan,
    /// The maximum memory of idle sessions.
    pub session_memory: ByteSize,
    /// The maximum number of requests of one client in a minute.
    pub client_requests_per_minute: Option<u32>,
    /// The maximum number of prompt and answer tokens of one client in a minute.
    pub client_tokens_per_minute: Option<u32>,
    /// The number of windows that the model summarises at the same time.
    pub rule_jobs: usize,
}

/// `[store]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Store {
    /// The folder of the durable store.
    pub path: PathBuf,
    /// The size of the store at which new requests are refused.
    pub max_size: ByteSize,
    /// The maximum size of the messages of all rules in it; further ones are dropped.
    pub max_rules_size: ByteSize,
    /// The retention of an outcome for repeated requests; never shorter than the request's deadline.
    pub keep_for: TimeSpan,
    /// The maximum number of outcomes that are kept.
    pub keep_outcomes: usize,
    /// The maximum memory of the texts of kept outcomes.
    pub keep_memory: ByteSize,
    /// The treatment of requests while the store can't be written.
    pub when_failing: WhenFailing,
}

/// The treatment of requests while the store can't be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WhenFailing {
    /// They are refused.
    Refuse,
    /// They are answered; a crash or a power cut can lose them.
    Memory,
}

/// `[metrics]`
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Metrics {
    /// The address on which metrics are served; none means not at all.
    pub listen: Option<SocketAddr>,
}

/// `[traces]`
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Traces {
    /// The collector; none means that nothing is sent.
    pub endpoint: Option<String>,
}

/// `[audit]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Audit {
    /// The audit file, with a line for each job; none means no audit.
    pub path: Option<PathBuf>,
    /// Whether the audit contains prompts and answers.
    pub texts: bool,
    /// The size at which the file is rotated.
    pub max_size: ByteSize,
    /// The number of rotated files that are kept.
    pub keep: usize,
}

/// `[log]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Log {
    /// A level, or directives by module as tracing-subscriber's `EnvFilter` reads them.
    pub level: String,
    /// The format of a line.
    pub format: LogFormat,
    /// The file that lines are appended to, in place of standard error.
    pub path: Option<PathBuf>,
}

/// The format of a log line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// Text for people.
    Text,
    /// One JSON object a line.
    Json,
    /// Entries of systemd's journal, with their fields.
    Journald,
}
