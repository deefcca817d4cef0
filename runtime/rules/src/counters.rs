//! How rules are doing.

/// Numbers since the start, and how things stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RuleCounters {
    /// Rules there are.
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
    /// What they cost, in bytes.
    pub held_bytes: u64,
    /// What open windows hold in memory beside them, in bytes.
    pub window_bytes: u64,
    /// WindowOperator that have ended.
    pub windows: u64,
    /// Events that wait for their words.
    pub waiting: usize,
    /// Events that were handed on.
    pub events: u64,
    /// Events whose words failed.
    pub failed: u64,
    /// Events whose expiry passed before the broker had them.
    pub events_expired: u64,
    /// Retained events that were not published since a newer one of their topic waited behind them.
    pub events_superseded: u64,
    /// Events that were dropped: more waited for the broker than there is room for.
    pub events_dropped: u64,
    /// What the events cost that wait for the broker, in bytes.
    pub events_bytes: u64,
}
