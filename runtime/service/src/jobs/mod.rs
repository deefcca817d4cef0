//! Jobs: the ledger of requests and their outcomes, and the tasks that run them.

pub(crate) mod chunks;
pub(crate) mod journal;
pub(crate) mod known_images;
pub(crate) mod ledger;
pub(crate) mod pixels;
pub(crate) mod quota;
pub(crate) mod receipts;
pub(crate) mod runner;
pub(crate) mod sessions;
pub(crate) mod throughput;

pub use quota::Quota;
