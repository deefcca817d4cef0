//! Rules: which messages become which summaries.

mod read;
mod types;

pub(crate) use read::{merge, read};
pub use types::{
    Field, Output, PayloadFormat, Prompt, Rate, Rule, RuleLimits, Selector, TextFormat, TimeOfDay,
    TimeSource, Weekdays, Window, WindowKind, Words,
};
