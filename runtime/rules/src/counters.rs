//! The counters of the rules.

/// Counters since the start, and gauges.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RuleCounters {
    /// Configured rules.
    pub rules: usize,
    /// Messages that were counted, once for each rule.
    pub messages: u64,
    /// Messages that came after their window had ended.
    pub late: u64,
    /// Messages that a publisher had sent before (`dedupe`).
    pub repeated: u64,
    /// Messages that the broker had delivered before.
    pub redelivered: u64,
    /// Messages that were dropped: the store was full or failing.
    pub dropped: u64,
    /// Messages in open windows.
    pub held: usize,
    /// Their cost, in bytes.
    pub held_bytes: u64,
    /// Bytes that open windows hold in memory beside them.
    pub window_bytes: u64,
    /// Windows that have closed.
    pub windows: u64,
    /// Events that are not published yet.
    pub waiting: usize,
    /// Events that were handed on.
    pub events: u64,
    /// Events without a summary because of an error.
    pub failed: u64,
    /// Events whose expiry passed before the broker had them.
    pub events_expired: u64,
    /// Retained events that were not published since a newer one of their topic waited behind them.
    pub events_superseded: u64,
    /// Events that were dropped because too many waited for the broker.
    pub events_dropped: u64,
    /// The cost of the events that wait for the broker, in bytes.
    pub events_bytes: u64,
}
