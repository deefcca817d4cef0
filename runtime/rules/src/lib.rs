//! Rules: windows of messages become events.
//!
//! A message of a rule's topics is extracted and assigned to a window of its group. When the window closes, code computes
//! its facts, a model writes a summary of them, and both are published as one event.
//!
//! The crate is pure: messages and the time are arguments, and what it decides is returned as changes for the store
//! ([`changes`]). It must never know clocks, files, tasks, the broker, the store or the model. Windows are never stored:
//! after a restart they are rebuilt from the stored messages and the checkpoints of their groups.

pub mod changes;
mod condition;
mod counters;
pub mod engine;
mod event;
mod extraction;
mod facts;
mod picture;
mod replay;
mod rule;
pub mod summary;
mod time;
mod window;

pub use counters::RuleCounters;
pub use engine::RuleMessage;
pub use event::{Event, EventError, EventWindow, Published};
pub use facts::{FieldFacts, Value};
pub use picture::{PictureChoice, PictureDetail, PictureSpec, ShownPicture, format_of};
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

/// Checks a rule's condition and template.
///
/// # Errors
/// The condition or the template is wrong; one line.
pub fn check(rule: &Rule) -> Result<(), String> {
    engine::check(rule).map(drop)
}
