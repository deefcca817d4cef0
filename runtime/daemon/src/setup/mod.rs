//! From the configuration to what each crate wants.

pub(crate) mod args;
mod kv_budget;
pub(crate) mod link;
pub(crate) mod model;
mod prefixes;
pub(crate) mod rule_conversion;
pub(crate) mod settings;
