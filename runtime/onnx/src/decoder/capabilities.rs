//! The capabilities of a decoder.

use phi_edge_engine::{Caps, KvType};
use phi_edge_models::GenaiConfig;

use crate::kv::KvMemory;

/// The capabilities of a graph over `kv`.
pub(super) fn capabilities(
    kv: &KvMemory,
    kv_type: KvType,
    genai: &GenaiConfig,
    rope_boundary: Option<usize>,
    vocab_size: usize,
    ragged: bool,
    image_width: Option<usize>,
) -> Caps {
    let context = kv.context(genai.context_length);
    Caps {
        kv_type,
        ragged_chunks: ragged,
        idle_rows: ragged,
        mixed_regimes: ragged,
        batches_below_boundary: true,
        shared_kv: true,
        contiguous_rows: kv.share_granularity().is_none(),
        share_granularity: kv.share_granularity(),
        kv_bytes_per_token: kv.bytes_per_token() as u64,
        kv_block: kv.block_tokens(),
        kv_row_overhead: kv.page_overhead(),
        context_length: context,
        rope_boundary: rope_boundary.filter(|boundary| *boundary < context),
        vocab_size,
        rows: kv.rows(),
        image_width,
    }
}
