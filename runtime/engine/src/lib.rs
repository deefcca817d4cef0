//! The inference engine: schedules sequences over a [`Decoder`], samples, stops and streams text.
//!
//! Pure and synchronous: time, randomness and cancellation come in as arguments. It must never know ONNX
//! Runtime, tokio, MQTT, files or clocks.

mod cost;
mod decoder;
mod detokenizer;
mod engine;
mod feature_cache;
mod ids;
mod image;
mod prefill_estimate;
mod repetition;
mod request;
mod rows;
mod run_times;
mod sampler;
mod scheduler;
mod sequence;
mod speculation;
mod stop;
mod symbol;

pub use decoder::{
    Caps, DecodeError, Decoder, Hook, Input, Interrupt, InterruptGuard, KvType, Logits, Regime, Row,
    SharedSpan, Step, Wanted,
};
pub use detokenizer::Detokenizer;
pub use engine::{CachedPrefixes, Engine, EngineConfig, KvUse, RopePolicy};
pub use ids::{RequestId, RowId, TokenId};
pub use image::{Image, ImageEncoding, ImageFeatures, ImagePixels, PixelSource, PixelState};
pub use prefill_estimate::PrefillEstimate;
pub use request::{Event, Failure, Finish, GenerateRequest, PrefillRuns, Sampling, Stop, Summary};
pub use symbol::{ImageId, Symbol};
