//! The conversion of the configuration to the configurations of the other crates.

pub(crate) mod args;
pub(crate) mod kv_budget;
pub(crate) mod link;
pub(crate) mod model;
pub(crate) mod pinned_prefixes;
pub(crate) mod provider_lines;
pub(crate) mod rule_conversion;
pub(crate) mod service;
pub(crate) mod settings;

/// A number of bytes as a length in memory, which saturates.
fn usize_of(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}
