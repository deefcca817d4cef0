//! The commands, each with its arguments.

pub(crate) mod ask;
pub(crate) mod bench;
pub(crate) mod check;
pub(crate) mod completions;
pub(crate) mod config;
pub(crate) mod manual;
pub(crate) mod models;
pub(crate) mod pull;
pub(crate) mod rules;
pub(crate) mod store;
pub(crate) mod support;
pub(crate) mod top;
