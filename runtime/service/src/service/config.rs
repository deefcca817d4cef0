//! Bounds and times of the service.

use std::time::Duration;

use crate::engine_thread::EngineInfo;
use crate::jobs::ledger::Limits;
use crate::jobs::quota::Quota;
use crate::observers::Observers;
use phi_edge_rules::Rule;

/// Bounds and times of the service.
#[derive(Debug, Clone, PartialEq)]
pub struct ServiceConfig {
    /// The most jobs that wait for a slot; beyond them only a client that has less than its share of them is taken in, up to
    /// twice as many in all, and others are refused as `busy`. Also the most outcomes that may wait to be taken before new
    /// requests are refused.
    pub queue: usize,
    /// The longest time a job may take from acceptance to its end, and the default.
    pub max_deadline: Duration,
    /// The most tokens a prompt may have; none means what the model's context holds.
    pub max_prompt_tokens: Option<usize>,
    /// The least time between two chunks of an answer.
    pub chunk_interval: Duration,
    /// How long an outcome is kept for a client that asks again.
    pub keep_for: Duration,
    /// The most outcomes that are kept; the oldest go first.
    pub keep_outcomes: usize,
    /// The most text, in bytes, of all outcomes that are kept.
    pub keep_bytes: usize,
    /// How long a session that nobody uses is kept.
    pub session_ttl: Duration,
    /// The most memory of sessions that nobody uses, in bytes: four a token.
    pub session_memory: usize,
    /// What one client may ask for.
    pub quota: Quota,
    /// The model's name, for answers.
    pub model: String,
    /// What to make of which messages.
    pub rules: Vec<Rule>,
    /// Windows that get their words at the same time.
    pub rule_jobs: usize,
    /// The most that the messages of open windows may cost, in memory and in the store, in bytes.
    pub rules_bytes: u64,
    /// The most that events may cost that wait for the broker, in memory and in the store, in bytes; the oldest go first.
    pub event_bytes: u64,
    /// Who is told of every end.
    pub observers: Observers,
}

impl Default for ServiceConfig {
    fn default() -> Self {
        Self {
            queue: 64,
            max_deadline: Duration::from_mins(10),
            max_prompt_tokens: None,
            chunk_interval: Duration::from_millis(100),
            keep_for: Duration::from_mins(10),
            keep_outcomes: 1024,
            keep_bytes: 8 << 20,
            session_ttl: Duration::from_mins(30),
            session_memory: 16 << 20,
            quota: Quota::default(),
            model: String::new(),
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
