//! The KV memory in blocks of the custom operator for attention ([`crate::attention::layout`]): `[layers, rows, blocks,
//! heads, bytes]`.
//!
//! The whole of it is reserved as address space and takes memory only where tokens were written. A row of a layer is one
//! range, so that no more than its ends are lost to whole pages.

use std::ops::Range;

use ort::memory::MemoryInfo;

use super::mapping::{Mapping, page_size, reserve_rows};
use crate::attention::layout::{BLOCK_TOKENS, BlockElement, TILE_TOKENS};
use crate::error::OnnxError;
use crate::raw::{Element, View};

/// The dimensions of the blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct BlocksShape {
    pub(crate) layers: usize,
    pub(crate) rows: usize,
    pub(crate) heads: usize,
    pub(crate) head_size: usize,
    /// Tokens that a row has room for. Its address space is rounded up to whole tiles.
    pub(crate) capacity: usize,
    pub(crate) element: BlockElement,
}

impl BlocksShape {
    /// Bytes of one token, over all layers: its share of a block.
    pub(crate) fn bytes_per_token(&self) -> usize {
        self.layers * self.block_bytes() / BLOCK_TOKENS
    }

    /// The most bytes that whole pages add to a row: both ends of its range in each layer.
    pub(crate) fn page_overhead(&self) -> u64 {
        (2 * self.layers * page_size()) as u64
    }

    /// Blocks of a row: as many as are read tile by tile.
    fn blocks(&self) -> usize {
        self.capacity.next_multiple_of(TILE_TOKENS) / BLOCK_TOKENS
    }

    fn block_bytes(&self) -> usize {
        self.heads * self.element.head_bytes(self.head_size)
    }

    fn row_bytes(&self) -> usize {
        self.blocks() * self.block_bytes()
    }
}

/// The keys and values of all rows.
pub(crate) struct KvBlocks {
    shape: BlocksShape,
    mapping: Mapping,
    info: MemoryInfo<'static>,
}

// SAFETY: it owns its memory, and one thread at a time uses it (`&mut self` for every write).
unsafe impl Send for KvBlocks {}

impl KvBlocks {
    /// Reserves the blocks in the host's address space.
    pub(crate) fn reserve(shape: BlocksShape) -> Result<Self, OnnxError> {
        let bytes = (shape.layers * shape.rows).checked_mul(shape.row_bytes());
        let (mapping, info) = reserve_rows(bytes, shape.rows, shape.capacity)?;
        Ok(Self { shape, mapping, info })
    }

    /// The dimensions of the blocks.
    pub(crate) fn shape(&self) -> &BlocksShape {
        &self.shape
    }

    /// The whole of it as a tensor of bytes. It must be dropped before the blocks.
    pub(crate) fn view(&self) -> Result<View, String> {
        let shape = &self.shape;
        let dims = [
            shape.layers,
            shape.rows,
            shape.blocks(),
            shape.heads,
            shape.element.head_bytes(shape.head_size),
        ]
        .map(|dim| i64::try_from(dim).unwrap_or(i64::MAX));
        // SAFETY: the mapping is of this size; writes during a run come from that run alone, since the decoder is
        // borrowed mutably for it.
        unsafe { View::new(&self.info, self.mapping.base().cast(), &dims, Element::U8) }
    }

    /// Copies `tokens` of one row to the same places of another, with what stands behind them in their last block.
    pub(crate) fn copy(&mut self, from: usize, to: usize, tokens: &Range<usize>) {
        if from == to || tokens.is_empty() {
            return;
        }
        let blocks = tokens.start / BLOCK_TOKENS..tokens.end.div_ceil(BLOCK_TOKENS);
        let bytes = blocks.len() * self.shape.block_bytes();
        for layer in 0..self.shape.layers {
            // SAFETY: both ranges lie within their rows (`tokens` end at the capacity or before: checked by the caller),
            // and two rows never overlap.
            unsafe {
                let source = self.block(layer, from, blocks.start);
                std::ptr::copy_nonoverlapping(source, self.block(layer, to, blocks.start), bytes);
            }
        }
    }

    /// Gives the memory after the first `len` tokens of a row back to the system.
    pub(crate) fn shrink(&mut self, row: usize, len: usize) {
        let kept = len.div_ceil(BLOCK_TOKENS) * self.shape.block_bytes();
        for layer in 0..self.shape.layers {
            let start = (layer * self.shape.rows + row) * self.shape.row_bytes();
            self.mapping
                .give_back(start + kept, self.shape.row_bytes() - kept);
        }
    }

    /// Appends the blocks of the first `len` tokens of a row to `out`, layer by layer.
    pub(crate) fn read(&self, row: usize, len: usize, out: &mut Vec<u8>) {
        let bytes = len.div_ceil(BLOCK_TOKENS) * self.shape.block_bytes();
        for layer in 0..self.shape.layers {
            // SAFETY: the range lies within the row and was reserved; unwritten pages read as zeros.
            out.extend_from_slice(unsafe { std::slice::from_raw_parts(self.block(layer, row, 0), bytes) });
        }
    }

    /// Writes what [`KvBlocks::read`] returned. `bytes` must be exactly that long.
    pub(crate) fn write(&mut self, row: usize, len: usize, bytes: &[u8]) -> Result<(), String> {
        let range = len.div_ceil(BLOCK_TOKENS) * self.shape.block_bytes();
        if range == 0 || bytes.len() != range * self.shape.layers {
            return Err("the saved keys and values have another size than this model's".into());
        }
        for (layer, source) in bytes.chunks_exact(range).enumerate() {
            // SAFETY: the target lies within the row; the source is a slice of the same length.
            unsafe {
                std::ptr::copy_nonoverlapping(source.as_ptr(), self.block(layer, row, 0), range);
            }
        }
        Ok(())
    }

    /// The address of a block.
    fn block(&self, layer: usize, row: usize, block: usize) -> *mut u8 {
        let row = layer * self.shape.rows + row;
        self.mapping
            .base()
            .wrapping_add((row * self.shape.blocks() + block) * self.shape.block_bytes())
    }
}
