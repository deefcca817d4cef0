//! A model directory as onnxruntime-genai's exporter writes it: configuration, tokenizer, chat template; the folder that
//! holds several, and how models get there: from a hub, an archive, another folder.
//!
//! It must never know ONNX Runtime, MQTT or tokio.

mod chat_template;
mod detokenizer;
mod error;
mod fingerprint;
mod genai_config;
mod hub;
mod manifest;
mod model_dir;
mod pieces;
mod shelf;
mod special_tokens;
mod text_model;

pub use chat_template::{Message, Role};
pub use error::ModelError;
pub use genai_config::{DecoderInputs, DecoderOutputs, GenaiConfig};
pub use hub::{
    Accelerator, DEFAULT_HUB, Event, Hub, HubOptions, Outcome, Patience, Plan, Proxies, PullError, Size,
    Source, Watch, known_models,
};
pub use manifest::{FileRecord, Manifest, Origin};
pub use model_dir::ModelDir;
pub use shelf::{Fault as FileFault, FreeSpace, ModelLink, Shelf, ShelfEntry};
pub use text_model::{EncodeCost, EncodeError, TextModel};
