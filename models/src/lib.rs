//! Models on disk: a model directory as onnxruntime-genai's exporter writes it (configuration, tokenizer, chat
//! template), the store of several, and pulls from a hub, an archive or another folder.
//!
//! It must never know ONNX Runtime, MQTT or tokio.

mod chat_template;
mod config_section;
mod detokenizer;
mod digest;
mod encode_cost;
mod error;
mod fingerprint;
mod genai_config;
mod hub;
mod image;
mod manifest;
mod model_dir;
mod pieces;
mod progress;
mod pull_error;
mod redaction;
mod remote_file;
mod safe_path;
mod special_tokens;
mod store;
mod text_model;
mod truncation;

pub use crate::image::{
    ContactSheet, Detail, ImageGrid, ImageHeader, ImageInfo, ReadError, SheetError, contact_sheet,
    contact_sheet_file, decode, image_id, preprocess, probe,
};
pub use chat_template::{Message, PlacedImage, Role};
pub use encode_cost::{EncodeCost, EncodeError};
pub use error::ModelError;
pub use genai_config::{DecoderInputs, DecoderOutputs, GenaiConfig, VisionConfig};
pub use hub::{
    Accelerator, DEFAULT_HUB, Hub, HubOptions, Outcome, Plan, Proxies, RetryPolicy, Source, known_models,
};
pub use manifest::{FileRecord, Manifest, Origin};
pub use model_dir::ModelDir;
pub use progress::{Event, Watch};
pub use pull_error::{PullError, Size};
pub use store::{FileFault, FreeSpace, ModelLink, ModelStore, StoredModel};
pub use text_model::TextModel;
pub use truncation::{
    ChatEncoder, ConversationTurn, ConversationTurns, PromptRoom, Truncated, Truncation, encode_truncated,
};
