//! Prompts: the interface to the text side of a model, and the door: admission control of encoding.
//!
//! It must never know a transport, ONNX Runtime, or how a job is run.

mod door;
mod interface;
mod seen_tokens;

pub use door::{
    DecodeMemory, DecodeShare, ENCODE_MEMORY, Encode, EncodeDoor, Encoded, ImagesToRead, NotEncoded,
};
pub use interface::{PromptError, Prompts};
pub use seen_tokens::seen;
