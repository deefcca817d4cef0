//! ONNX Runtime under the engine: finds and loads the library, chooses the execution provider, owns the KV
//! memory, binds it, and runs exported graphs as the engine's [`Decoder`](phi_edge_engine::Decoder).
//!
//! The only crate that names `ort`, and the one with `unsafe` code (but for the signal handlers of `phi-edge`). It must never know MQTT or tokio.

mod attention;
pub mod baseline;
mod custom_operators;
mod decoder;
mod device_memory;
mod edit_cache;
mod elf_size;
mod error;
mod exp2_series;
mod expert_speed;
mod experts;
mod experts_session;
mod graph;
mod graph_file;
mod interruptible;
mod isa;
mod kv;
mod kv_cache;
mod library;
mod load;
mod logit_difference;
mod matmul;
mod mul_add;
mod onnx_proto;
mod open;
mod packed_inputs;
mod paged_stand_in;
mod prefetch;
mod prepare;
pub mod probe;
mod processor;
mod product_choice;
mod product_weights;
mod provider;
mod provider_attempt;
mod provider_proof;
mod raw;
mod run_inputs;
mod session;
mod telemetry;
mod time_products;
mod verify_edits;
mod version;
mod vision;
mod workers;

pub use decoder::{DecoderConfig, OnnxDecoder};
pub use error::OnnxError;
pub use expert_speed::{ExpertSpeed, expert_speeds};
pub use isa::{Isa, IsaChoice};
pub use kv::KvFootprint;
pub use kv_cache::KvCache;
pub use library::Library;
pub use matmul::{ProductSpeed, product_speeds};
pub use paged_stand_in::PagedStandIn;
pub use prepare::{Level, Prepare, ProductShape};
pub use processor::is_slow_processor;
pub use product_choice::ProductChoice;
pub use product_weights::ProductWeights;
pub use provider::{
    GraphNode, NodePlacement, PluginSettings, Provider, ProviderReport, ProviderSettings, RefusedProvider,
};
pub use telemetry::forbid_telemetry;
pub use version::{MINIMUM_VERSION, PINNED_VERSION};
pub use vision::{VisionEncoder, VisionWeights};
