//! A model directory as onnxruntime-genai's exporter writes it: configuration, tokenizer, chat template.
//!
//! It must never know ONNX Runtime, MQTT or tokio.

mod chat_template;
mod detokenizer;
mod error;
mod fingerprint;
mod genai_config;
mod manifest;
mod model_dir;
mod special_tokens;
mod text_model;

pub use chat_template::{Message, Role};
pub use error::ModelError;
pub use genai_config::{DecoderInputs, DecoderOutputs, GenaiConfig};
pub use manifest::Manifest;
pub use model_dir::ModelDir;
pub use text_model::TextModel;
