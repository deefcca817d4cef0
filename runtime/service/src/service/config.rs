//! The configuration of the service.

use std::time::Duration;

use crate::engine_thread::EngineInfo;
use crate::jobs::ledger::Limits;
use crate::jobs::quota::Quota;
use crate::observers::Observers;
use phi_edge_rules::Rule;

/// The bounds and times of the service.
#[derive(Debug, Clone, PartialEq)]
pub struct ServiceConfig {
    /// The maximum number of jobs that wait for a slot. Beyond it only a client that has less than its share of them is
    /// accepted, up to twice as many in all, and others are refused as `busy`. Also the maximum number of outcomes that
    /// wait to be taken before new requests are refused.
    pub queue: usize,
    /// The maximum time from a job's acceptance to its end, and the default.
    pub max_deadline: Duration,
    /// The maximum number of tokens of a prompt; `None` is what the model's context holds.
    pub max_prompt_tokens: Option<usize>,
    /// The maximum number of pixels of an image.
    pub image_pixels: u64,
    /// The minimum time between two chunks of an answer.
    pub chunk_interval: Duration,
    /// The time for which an outcome is kept for a client that asks again.
    pub keep_for: Duration,
    /// The maximum number of outcomes that are kept; the oldest are removed first.
    pub keep_outcomes: usize,
    /// The maximum text of all kept outcomes, in bytes.
    pub keep_bytes: usize,
    /// The time for which an unused session is kept.
    pub session_ttl: Duration,
    /// The maximum memory of unused sessions, in bytes: their tokens, and the files of their images.
    pub session_memory: usize,
    /// The quota of one client.
    pub quota: Quota,
    /// The model's name, for answers.
    pub model: String,
    /// The context length of the model itself, in tokens; `None` where it is that of the engine. Where the engine's is
    /// shorter, the memory for keys and values bounds it.
    pub model_context: Option<usize>,
    /// The rules that make events of messages.
    pub rules: Vec<Rule>,
    /// The maximum number of windows that are summarised at once.
    pub rule_jobs: usize,
    /// The maximum cost of the messages of open windows, in memory and in the store, in bytes.
    pub rules_bytes: u64,
    /// The maximum cost of the events that wait for the broker, in memory and in the store, in bytes; the oldest are
    /// dropped first.
    pub event_bytes: u64,
    /// The observers of the service.
    pub observers: Observers,
}

impl Default for ServiceConfig {
    fn default() -> Self {
        Self {
            queue: 64,
            max_deadline: Duration::from_mins(10),
            max_prompt_tokens: None,
            image_pixels: 64_000_000,
            chunk_interval: Duration::from_millis(100),
            keep_for: Duration::from_mins(10),
            keep_outcomes: 1024,
            keep_bytes: 8 << 20,
            session_ttl: Duration::from_mins(30),
            session_memory: 16 << 20,
            quota: Quota::default(),
            model: String::new(),
            model_context: None,
            rules: Vec::new(),
            rule_jobs: 2,
            rules_bytes: 64 << 20,
            event_bytes: 64 << 20,
            observers: Observers::default(),
        }
    }
}

impl ServiceConfig {
    pub(super) fn limits(&self, engine: &EngineInfo) -> Limits {
        Limits {
            slots: engine.slots.max(1),
            context: engine.context_length,
            memory: engine.memory.unwrap_or(usize::MAX),
            queue: self.queue.max(1),
            max_deadline: self.max_deadline,
            keep_for: self.keep_for,
            keep_outcomes: self.keep_outcomes,
            keep_bytes: self.keep_bytes,
            event_bytes: self.event_bytes,
            session_ttl: self.session_ttl,
            session_memory: self.session_memory,
            quota: self.quota,
            model: self.model.as_str().into(),
            observers: self.observers.clone(),
        }
    }
}
