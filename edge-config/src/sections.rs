//! The configuration as its users see it: one struct a section, every value checked.

use std::net::SocketAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::{ByteSize, Rule, Secret, TimeSpan};

/// The whole configuration. `default.toml` says what each key means; the comments here add what callers need.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Who this node is.
    pub node: Node,
    /// The link to the broker.
    pub mqtt: Mqtt,
    /// The model.
    pub model: Model,
    /// How the model is run.
    pub runtime: Runtime,
    /// What is refused.
    pub limits: Limits,
    /// Where accepted requests are kept.
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
    /// What stands before `/request`; the placeholder is already filled in.
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
    /// How long the broker keeps the session of an absent node, in whole seconds.
    pub session_expiry: TimeSpan,
    /// TLS; none of its files means a plain connection.
    #[serde(default)]
    pub tls: Tls,
    /// The pool whose requests this node shares.
    pub pool: Option<String>,
    /// What stands before `/{pool}/request`.
    pub pool_base: String,
    /// Whether the broker runs in this process; `host` and `port` are then not used.
    pub embedded: bool,
    /// Where the embedded broker listens; port 0 means any free one.
    pub embedded_listen: SocketAddr,
    /// Users and password hashes of the embedded broker.
    pub embedded_password_file: Option<PathBuf>,
    /// Access rights of the embedded broker.
    pub embedded_acl_file: Option<PathBuf>,
    /// The filters that a request's response topic must match one of; placeholders are already filled in.
    pub reply_topics: Vec<String>,
    /// The most levels of a topic that the broker takes, counted by the `/` in it.
    pub max_topic_levels: usize,
    /// The largest packet that is taken from the broker, which is told so.
    pub max_packet: ByteSize,
}

/// `[mqtt.tls]`
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tls {
    /// The certificates that the broker's must descend from, PEM.
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
}

/// `[runtime]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Runtime {
    /// What computes.
    pub provider: Provider,
    /// Threads of one step; none means as many as ONNX Runtime chooses.
    pub threads: Option<usize>,
    /// How many sequences run at once.
    pub slots: usize,
    /// The most memory for keys and values; none means a share of what is free.
    pub kv_memory: Option<ByteSize>,
    /// The ONNX Runtime library; none means that it is searched for.
    pub library: Option<PathBuf>,
    /// How many prompt tokens one step computes at most.
    pub prefill_chunk: usize,
    /// Whether what prompts have in common is computed once.
    pub prefix_cache: bool,
    /// Whether tokens are guessed from the text so far and verified together.
    pub speculation: bool,
    /// System prompts that are computed at start and kept.
    pub system_prompts: Option<Vec<String>>,
    /// Whether the model is tried once, and loaded ahead, before it is needed.
    pub prewarm: bool,
    /// After how long without work the model is unloaded; none means never.
    pub unload_after: Option<TimeSpan>,
    /// When to compute slower.
    pub pace: Pace,
}

/// `[runtime.pace]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pace {
    /// The degrees Celsius to be kept; none means that heat does not matter.
    pub max_temperature: Option<u32>,
    /// The thermal zones that count, by type; none means all.
    pub zones: Option<Vec<String>>,
    /// The least share of the time that heat leaves, in percent.
    pub least_share: u32,
    /// The share of the time on battery, in percent.
    pub battery_share: u32,
    /// The time between two looks.
    pub every: TimeSpan,
    /// Where the kernel tells.
    pub sysfs: PathBuf,
}

/// What computes: an ONNX Runtime execution provider.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Provider {
    /// The best that library and machine have.
    Auto,
    /// The processor.
    Cpu,
    /// An NVIDIA GPU.
    Cuda,
    /// A GPU by DirectML (Windows).
    DirectMl,
}

/// `[limits]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// The longest time from arrival to answer.
    pub max_deadline: TimeSpan,
    /// The largest request payload; `mqtt.max_packet` is larger.
    pub max_payload: ByteSize,
    /// The most new tokens that a request may ask for.
    pub max_tokens: usize,
    /// The most tokens a prompt may have; none means what the model's context holds.
    pub max_prompt_tokens: Option<usize>,
    /// How many requests may wait.
    pub queue: usize,
    /// How long running answers may go on at shutdown.
    pub drain_grace: TimeSpan,
    /// How long a session that nobody uses is kept.
    pub session_ttl: TimeSpan,
    /// The most memory of the sessions that nobody uses.
    pub session_memory: ByteSize,
    /// Requests that one client may make in a minute.
    pub client_requests_per_minute: Option<u32>,
    /// Tokens of prompts and answers that one client may use in a minute.
    pub client_tokens_per_minute: Option<u32>,
    /// Windows of rules that the model words at the same time.
    pub rule_jobs: usize,
}

/// `[store]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Store {
    /// The folder of the durable store.
    pub path: PathBuf,
    /// The most that is stored before new requests are refused.
    pub max_size: ByteSize,
    /// The most that the messages of all rules may take of it; further ones are dropped.
    pub max_rules_size: ByteSize,
    /// How long an outcome is kept for those that ask again; never shorter than the request's deadline.
    pub keep_for: TimeSpan,
    /// The most outcomes that are kept.
    pub keep_outcomes: usize,
    /// The most memory of the texts of outcomes that are kept.
    pub keep_memory: ByteSize,
    /// What becomes of requests while the store can't be written.
    pub when_failing: WhenFailing,
}

/// What becomes of requests while the store can't be written.
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
    /// Where metrics are served; none means not at all.
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
    /// The file that gets a line for each job; none means no audit.
    pub path: Option<PathBuf>,
    /// Whether prompts and answers are in it.
    pub texts: bool,
    /// The size at which a new file is begun.
    pub max_size: ByteSize,
    /// How many full files are kept beside it.
    pub keep: usize,
}

/// `[log]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Log {
    /// A level, or directives by module as tracing-subscriber's `EnvFilter` reads them.
    pub level: String,
    /// The form of a line.
    pub format: LogFormat,
}

/// The form of a log line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
    /// Entries of systemd's journal, with their fields.
    Journald,
}
