//! The commands of the command line, each with its arguments.

pub(crate) mod ask;
pub(crate) mod bench;
mod broker_client;
pub(crate) mod check;
pub(crate) mod completions;
pub(crate) mod config;
mod local_images;
mod local_model;
pub(crate) mod manual;
mod model_store;
pub(crate) mod models;
mod progress;
pub(crate) mod pull;
pub(crate) mod rules;
pub(crate) mod store;
pub(crate) mod support;
#[cfg(windows)]
pub(crate) mod system_service;
pub(crate) mod top;
