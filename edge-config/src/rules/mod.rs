//! Rules: how messages are grouped into windows, and what is published about them.

mod folder;
mod keys;
mod parse;
mod picture;
mod read;
mod topics;
mod types;
mod values;
mod window;
mod words;

pub(crate) use folder::folder;
pub(crate) use keys::TABLES;
pub use keys::rule_keys;
pub(crate) use parse::{is_field_name, is_pointer};
pub(crate) use read::{merge, read};
pub(crate) use topics::settle;
pub use types::{
    Field, Output, PayloadFormat, Picture, PictureChoice, PictureDetail, Prompt, Rate, Rule, RuleLimits,
    Selector, TextFormat, TimeOfDay, TimeSource, Weekdays, Window, WindowKind, Words,
};
