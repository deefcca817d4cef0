//! Prometheus metrics: those that are recorded as things happen, those that are read at each scrape, and their
//! server.

pub(crate) mod catalogue;
pub(crate) mod http;
mod recorder;
mod sources;
mod zones;

pub(crate) use http::Server;
pub(crate) use recorder::Recorder;
pub(crate) use sources::{Bounds, MetricsSources, liveness_probe};
pub(crate) use zones::Zones;
