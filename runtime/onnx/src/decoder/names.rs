//! The graph's names as C strings.

use std::ffi::CString;

use phi_edge_models::GenaiConfig;

use crate::prepare::{
    BLOCK_TABLE, KV_BLOCKS, KV_TABLE, LENGTH_BOUNDS, LENGTHS, LOGITS_ROWS, PAST_LENGTHS, ROW_STARTS,
};

/// The graph's names as C strings.
pub(super) struct Names {
    pub(super) ids: CString,
    pub(super) image_features: Option<CString>,
    pub(super) mask: CString,
    pub(super) positions: Option<CString>,
    pub(super) lengths: Option<CString>,
    pub(super) logits_rows: CString,
    pub(super) logits: CString,
    pub(super) kv_blocks: CString,
    pub(super) kv_table: CString,
    pub(super) row_starts: CString,
    pub(super) past_lengths: CString,
    pub(super) block_table: CString,
    pub(super) length_bounds: CString,
    /// `(past, present)` per layer, key then value.
    pub(super) kv: Vec<(CString, CString)>,
}

impl Names {
    /// `None` for graphs that take embeddings.
    pub(super) fn of(config: &GenaiConfig, positions: Option<&str>, ragged: bool) -> Option<Self> {
        let c = |name: &str| CString::new(name).ok();
        let mut kv = Vec::with_capacity(2 * config.num_layers);
        for layer in 0..config.num_layers {
            kv.push((c(&config.past_key(layer))?, c(&config.present_key(layer))?));
            kv.push((c(&config.past_value(layer))?, c(&config.present_value(layer))?));
        }
        Some(Self {
            ids: c(config.inputs.input_ids.as_deref()?)?,
            image_features: match &config.inputs.image_features {
                Some(name) => Some(c(name)?),
                None => None,
            },
            mask: c(&config.inputs.attention_mask)?,
            positions: match positions {
                Some(name) => Some(c(name)?),
                None => None,
            },
            lengths: if ragged { Some(c(LENGTHS)?) } else { None },
            logits_rows: c(LOGITS_ROWS)?,
            kv_blocks: c(KV_BLOCKS)?,
            kv_table: c(KV_TABLE)?,
            row_starts: c(ROW_STARTS)?,
            past_lengths: c(PAST_LENGTHS)?,
            block_table: c(BLOCK_TABLE)?,
            length_bounds: c(LENGTH_BOUNDS)?,
            logits: c(&config.outputs.logits)?,
            kv,
        })
    }
}
