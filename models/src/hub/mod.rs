//! The client of a hub that speaks Hugging Face's protocol: models are fetched so that it may be interrupted at any
//! time, and verified before they replace any.
//!
//! The protocol as it is used here:
//!
//! * `GET /api/models/{repository}/revision/{revision}` names the commit and the licence of the model card. Everything
//!   after it asks for that commit, so that all files belong together.
//! * `GET /api/models/{repository}/tree/{commit}?recursive=true` lists files, in pages joined by `Link: <…>; rel="next"`.
//!   Files in large-file storage come with their SHA-256, the others with the id of their git blob (a SHA-1).
//! * `GET /{repository}/resolve/{commit}/{path}` gives a file, mostly by a redirect to a server elsewhere, which takes
//!   `Range`.
//!
//! Files are requested piece by piece (`Range` of [`RetryPolicy::chunk_bytes`]): at most one piece of each file is
//! sent again after the process dies.

mod fetch;
mod http;
mod listing;
mod partial_file;
mod plan;
mod pull;
mod retry;
mod source;

pub use http::Proxies;
pub use plan::Plan;
pub use pull::{Hub, HubOptions, Outcome};
pub use retry::RetryPolicy;
pub use source::{Accelerator, DEFAULT_HUB, Source, known_models};
