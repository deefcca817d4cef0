//! Errors between the model's files and the first run.

use std::path::PathBuf;

use crate::version::MINIMUM_VERSION;

/// An error of loading a model. One line each: what, where, what to do.
#[derive(Debug, thiserror::Error)]
pub enum OnnxError {
    /// No library anywhere.
    #[error(
        "ONNX Runtime was not found; looked at {}. Install version {} or newer there, or name the file by runtime.library or ORT_DYLIB_PATH (in a source checkout: cargo xtask library)",
        .looked.join(", "), MINIMUM_VERSION
    )]
    LibraryNotFound {
        /// The places looked at, in order.
        looked: Vec<String>,
    },
    /// A library that can't be used.
    #[error("{}: ONNX Runtime can't be loaded: {fault}. It must be version {} or newer, built for this processor", .path.display(), MINIMUM_VERSION)]
    LibraryUnusable {
        /// The file.
        path: PathBuf,
        /// What the loader said.
        fault: String,
    },
    /// The provider that the operator asked for can't be had.
    #[error(
        "runtime.provider = \"{provider}\" can't be served: {fault}. {advice}, or set runtime.provider to \"cpu\" or \"auto\""
    )]
    ProviderUnavailable {
        /// Its name in the configuration.
        provider: &'static str,
        /// What is missing.
        fault: String,
        /// What to do, without a full stop.
        advice: String,
    },
    /// A plugin's library that may not be loaded.
    #[error("runtime.plugin.library: {} {fault}", .path.display())]
    PluginRefused {
        /// The library.
        path: PathBuf,
        /// Why not, and what to do.
        fault: String,
    },
    /// The graph or its weights.
    #[error("{}: {fault}", .path.display())]
    Model {
        /// The file.
        path: PathBuf,
        /// What is wrong with it and what to do.
        fault: String,
    },
    /// The type of keys and values that the operator asks for can't be had.
    #[error(
        "runtime.kv_cache = \"{kv_cache}\" can't be served: {fault}. Set runtime.kv_cache to \"auto\" or \"f32\""
    )]
    KvCacheUnavailable {
        /// The type's name in the configuration.
        kv_cache: &'static str,
        /// Why it is not available here.
        fault: String,
    },
    /// This processor does not have the instruction set that the operator asks for.
    #[error(
        "runtime.isa = \"{isa}\" can't be served: this processor does not have those instructions. Set runtime.isa to \"auto\""
    )]
    IsaUnavailable {
        /// The instruction set's name in the configuration.
        isa: &'static str,
    },
    /// The form of the image encoder's weights that the operator asks for can't be had.
    #[error(
        "model.vision_weights = \"{weights}\" can't be served: {fault}. Set model.vision_weights to \"auto\" or \"f32\""
    )]
    VisionWeightsUnavailable {
        /// The form's name in the configuration.
        weights: &'static str,
        /// Why it is not available here.
        fault: String,
    },
    /// No address space or memory for the KV cache.
    #[error(
        "the KV cache of {rows} rows of {context} tokens can't be reserved: {fault}. Lower runtime.slots or the context, or allow more address space"
    )]
    KvMemory {
        /// Rows of the slab.
        rows: usize,
        /// Tokens a row holds.
        context: usize,
        /// What the system said.
        fault: String,
    },
    /// ONNX Runtime itself.
    #[error("ONNX Runtime: {0}")]
    Runtime(String),
}

/// An error of ONNX Runtime as one line, without a full stop at its end, and without the inputs and outputs of a node that it does not
/// take: what is wrong with it follows behind them.
pub(crate) fn one_line(message: impl std::fmt::Display) -> String {
    let message = message.to_string();
    let words: Vec<&str> = message.split_whitespace().collect();
    let line = words.join(" ");
    let line = line.trim_end_matches(['.', ' ']);
    match (line.split_once("In Node, ("), line.rsplit_once(" , Error ")) {
        (Some((before, _)), Some((node, fault))) if before.len() < node.len() => format!("{before}{fault}"),
        _ => line.to_owned(),
    }
}

impl<T> From<ort::Error<T>> for OnnxError {
    fn from(error: ort::Error<T>) -> Self {
        Self::Runtime(one_line(error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_of_the_library_becomes_one_line_that_a_sentence_can_follow() {
        assert_eq!(
            one_line("not enabled\n  in this build. \n"),
            "not enabled in this build"
        );
        assert_eq!(one_line("file 1.5 of 2"), "file 1.5 of 2");
        assert_eq!(
            one_line(
                "an invalid model. In Node, (\"a\", Op, \"\", -1) : (\"x\": t,) -> (\"y\",) , Error Node(a) has input size 17."
            ),
            "an invalid model. Node(a) has input size 17"
        );
        assert_eq!(one_line("a , Error b In Node, (c"), "a , Error b In Node, (c");
        let fault = one_line("it could not be read in full.");
        let error = OnnxError::ProviderUnavailable {
            provider: "cuda",
            fault,
            advice: "Install it".to_owned(),
        };
        assert!(
            error.to_string().contains("in full. Install it, or set"),
            "{error}"
        );
    }
}
