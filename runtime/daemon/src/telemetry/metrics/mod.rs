//! Prometheus metrics: what is recorded as it happens, and what is read when somebody asks.

pub(crate) mod catalogue;
pub(crate) mod http;
mod recorder;
mod sources;
mod zones;

pub(crate) use http::Server;
pub(crate) use recorder::Recorder;
pub(crate) use sources::{Bounds, MetricsSources, liveness_probe};
pub(crate) use zones::Zones;
