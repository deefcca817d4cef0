//! Rules: windows of messages become events.
//!
//! A message that a rule's topics match is picked apart, kept, and counted in a window of its group. When the window
//! ends, its facts are computed by code, worded by the model, and published as one event.
//!
//! Windows are pure: time is an argument. What a window holds is never written down as such: messages are stored as they
//! arrive, and a restart counts them anew.

mod event;
mod facts;
mod rule;
mod time;
mod window;
pub mod words;

pub use event::{Event, EventError, EventWindow};
pub use facts::{FieldFacts, Value};
pub use rule::{
    Field, Output, PayloadFormat, PromptSource, Rule, RuleLimits, Selector, TextFormat, TimeSource, Weekdays,
    WindowKind, WindowSpec, Words,
};
pub use time::Time;
pub use window::{Closed, Closing, Mark, OTHER, Observation, Observed, Split, Windows};
