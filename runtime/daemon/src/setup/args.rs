//! The arguments that several commands share.

use std::path::PathBuf;

use clap::Args;
use phi_edge_onnx::{IsaChoice, KvCache, Prepare, Provider, VisionWeights};

#[derive(Args, Clone, Default)]
pub(crate) struct ConfigArgs {
    /// A configuration file, read after those in /etc/phi-edge.
    #[arg(long, value_name = "FILE", global = true)]
    pub(crate) config: Option<PathBuf>,
    /// Set one key, after all files and the environment; may be given several times.
    #[arg(long, value_name = "KEY=VALUE", value_parser = setting, global = true)]
    pub(crate) set: Vec<(String, String)>,
}

#[derive(Args, Clone)]
pub(crate) struct ModelArgs {
    /// The model directory: the folder that holds genai_config.json [default: model.path of the configuration].
    #[arg(long, value_name = "DIR")]
    pub(crate) model: Option<PathBuf>,
    /// Where it runs: auto, cpu, cuda, directml, webgpu or plugin (runtime.plugin.library of the configuration). An explicit
    /// choice is never replaced by another, unless runtime.fallback says so [default: auto].
    #[arg(long, value_name = "NAME")]
    pub(crate) provider: Option<Provider>,
    /// The type of keys and values in memory: auto, f32 (as the graph computes them) or i8 (8 bits: a quarter of the memory, a
    /// small loss of accuracy). An explicit i8 is an error where it is not supported [default: auto].
    #[arg(long, value_name = "TYPE")]
    pub(crate) kv_cache: Option<KvCache>,
    /// The form of the image encoder's weights in memory: auto, f32 (as the file has them), int8 or int4 [default: auto].
    #[arg(long, value_name = "FORM")]
    pub(crate) vision_weights: Option<VisionWeights>,
    /// The instruction set of the kernels: auto, avx512vnni, avxvnni, avx2, neondot, neon, scalar (the reference) or none
    /// (ONNX Runtime's kernels alone) [default: auto].
    #[arg(long, value_name = "NAME", hide = true)]
    pub(crate) isa: Option<IsaChoice>,
    /// Threads of a run [default: one for each fast core that this process may use].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) threads: Option<u16>,
    /// The ONNX Runtime library, a file or its folder [default: looked for].
    #[arg(long, value_name = "PATH")]
    pub(crate) library: Option<PathBuf>,
    /// How far the graph may be edited in memory: plain, logits, rope or ragged, with own products of int4 weights by
    /// +matmul, own attention by +attention and own experts by +experts [default: ragged+matmul+attention+experts].
    #[arg(long, value_name = "LEVEL")]
    pub(crate) prepare: Option<Prepare>,
    /// The most prompt tokens computed in one go [default: 512].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) prefill_chunk: Option<u32>,
}

fn setting(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.trim().is_empty() => Ok((key.trim().to_owned(), value.to_owned())),
        _ => Err("must be KEY=VALUE, as in mqtt.host=broker.local".to_owned()),
    }
}
