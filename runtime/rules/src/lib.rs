//! Rules: windows of messages become events.
//!
//! A message that a rule's topics match is picked apart, kept, and counted in a window of its group. When the window
//! ends, its facts are computed by code, worded by the model, and published as one event.
//!
//! WindowOperator are pure: time is an argument. What a window holds is never written down as such: messages are stored as they
//! arrive, and a restart counts them anew.

pub mod changes;
mod condition;
mod counters;
pub mod engine;
mod event;
mod extraction;
mod facts;
mod replay;
mod rule;
pub mod summary;
mod time;
mod window;

pub use counters::RuleCounters;
pub use engine::RuleMessage;
pub use event::{Event, EventError, EventWindow, Published};
pub use facts::{FieldFacts, Value};
pub use replay::{Replay, ReplayedWindow};
pub use rule::{
    Field, Output, PayloadFormat, PromptSource, Rule, RuleLimits, Selector, SummarySpec, TextFormat,
    TimeSource, Weekdays, WindowKind, WindowSpec,
};
pub use time::Time;
pub use window::{
    Checkpoint, CloseReason, ClosedWindow, IngestOutcome, OVERFLOW_GROUP, PeriodRemainder, WindowMessage,
    WindowOperator,
};

/// Whether a rule can be used: what only those know who run it.
///
/// # Errors
/// Its condition or its template can't be; one line.
pub fn check(rule: &Rule) -> Result<(), String> {
    engine::check(rule).map(drop)
}
