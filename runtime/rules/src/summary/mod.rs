//! Summaries: the prompts of a window, rendered from templates and split into parts, and the checks of the model's text.
//!
//! All of it is pure. It must never know where messages come from, which model reads the prompts, or the time.
//!
//! Messages of devices are not trusted: a message is cut to a size, a template puts it on one line of JSON
//! ([`Template`]'s filter `record`), and the model's text is cleaned before it is published ([`clean`]).

mod budget;
mod built_in;
mod clean;
mod error;
mod filters;
#[cfg(test)]
mod fixture;
mod json;
mod lint;
mod local_time;
mod numbers;
mod parts;
mod prefix;
mod prompt_message;
mod reduce;
mod template;
mod values;
mod window_facts;

pub use budget::PromptBudget;
pub use built_in::{TEMPLATE_NAMES, template_source};
pub use clean::clean;
pub use error::SummaryError;
pub use json::json_document;
pub use local_time::rfc3339;
pub use numbers::unsupported_numbers;
pub use parts::{PromptPlan, plan_prompts};
pub use prefix::prompt_prefix;
pub use prompt_message::{CUT_MARK, MAX_PROMPT_TEXT_BYTES, PromptMessage, bounded_text};
pub use reduce::reduction_prompt;
pub use template::Template;
pub use window_facts::WindowFacts;
