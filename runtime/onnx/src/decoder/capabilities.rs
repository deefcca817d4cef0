//! The capabilities of a decoder.

use phi_edge_engine::{Caps, KvType};
use phi_edge_models::GenaiConfig;

use crate::kv::KvMemory;
use crate::prepare::Level;

/// The context below which a lack of KV memory is logged as a warning.
const SHORT_CONTEXT_TOKENS: usize = 1024;

/// The capabilities of a graph over `kv`.
pub(super) fn capabilities(
    kv: &KvMemory,
    kv_type: KvType,
    genai: &GenaiConfig,
    rope_boundary: Option<usize>,
    vocab_size: usize,
    level: Level,
    image_width: Option<usize>,
) -> Caps {
    let context = kv.context(genai.context_length);
    let footprint = kv.footprint();
    // Tokens of a row are turned by its own length, with the tables of the run.
    let (ragged, mixed_regimes) = (level >= Level::Paged, level == Level::Ragged);
    Caps {
        kv_type,
        ragged_chunks: ragged,
        idle_rows: ragged,
        mixed_regimes,
        batches_below_boundary: true,
        shared_kv: true,
        contiguous_rows: kv.wants_neighbours(),
        share_granularity: kv.share_granularity(),
        kv_bytes_per_token: footprint.bytes_per_token,
        kv_block: footprint.block_tokens,
        kv_row_overhead: footprint.row_overhead,
        context_length: context,
        rope_boundary: rope_boundary.filter(|boundary| *boundary < context),
        vocab_size,
        rows: kv.rows(),
        image_width,
    }
}

/// Logs a warning where there is memory for a short context only.
pub(super) fn warn_of_short_context(caps: &Caps, genai: &GenaiConfig, kv_memory: Option<u64>) {
    if caps.context_length < SHORT_CONTEXT_TOKENS.min(genai.context_length) {
        tracing::warn!(
            context = caps.context_length,
            kv_bytes = kv_memory,
            "There is little memory for keys and values: longer prompts are refused (runtime.kv_memory, MemoryMax= of the unit)."
        );
    }
}
