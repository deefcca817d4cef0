//! The KV memory: keys and values of all rows, in one of two forms.

mod blocks;
mod footprint;
mod mapping;
mod tensors;

use std::ops::Range;

use crate::attention::layout::{BLOCK_TOKENS, BlockElement, TILE_TOKENS};

pub(crate) use blocks::{BlocksShape, KvBlocks};
pub use footprint::KvFootprint;
pub(crate) use tensors::{KvShape, KvSlab, Side};

/// The KV memory of a decoder.
pub(crate) enum KvMemory {
    /// As the tensors of the exporter's graph.
    Slab(KvSlab),
    /// In blocks of the custom operator.
    Blocks(KvBlocks),
}

impl KvMemory {
    pub(crate) fn rows(&self) -> usize {
        match self {
            Self::Slab(slab) => slab.shape().rows,
            Self::Blocks(blocks) => blocks.shape().rows,
        }
    }

    /// Tokens that a row has room for.
    pub(crate) fn capacity(&self) -> usize {
        match self {
            Self::Slab(slab) => slab.shape().capacity,
            Self::Blocks(blocks) => blocks.shape().capacity,
        }
    }

    /// The most tokens of a sequence: the model's context, or less where the memory is less.
    pub(crate) fn context(&self, model: usize) -> usize {
        model.min(self.capacity() - 1)
    }

    pub(crate) fn bytes_per_token(&self) -> usize {
        match self {
            Self::Slab(slab) => slab.shape().bytes_per_token(),
            Self::Blocks(blocks) => blocks.shape().bytes_per_token(),
        }
    }

    /// The number of tokens by which a row's memory grows.
    pub(crate) fn block_tokens(&self) -> usize {
        match self {
            Self::Slab(_) => 1,
            Self::Blocks(_) => BLOCK_TOKENS,
        }
    }

    /// The most bytes that whole pages add to a row.
    pub(crate) fn page_overhead(&self) -> u64 {
        match self {
            Self::Slab(slab) => slab.shape().page_overhead(),
            Self::Blocks(blocks) => blocks.shape().page_overhead(),
        }
    }

    /// The footprint of the graph's own type, and that of 8 bits, of rows of these dimensions.
    pub(crate) fn footprints(&self) -> [KvFootprint; 2] {
        let blocks = |element| match self {
            Self::Slab(slab) => BlocksShape {
                layers: slab.shape().layers,
                rows: slab.shape().rows,
                heads: slab.shape().heads,
                head_size: slab.shape().head_size,
                capacity: slab.shape().capacity,
                element,
            },
            Self::Blocks(blocks) => BlocksShape {
                element,
                ..*blocks.shape()
            },
        };
        let float = match self {
            Self::Slab(slab) => KvFootprint::of_tensors(slab.shape()),
            Self::Blocks(_) => KvFootprint::of_blocks(&blocks(BlockElement::F32)),
        };
        [float, KvFootprint::of_blocks(&blocks(BlockElement::I8))]
    }

    /// Rows may take tokens from each other, in spans that end at multiples of this.
    pub(crate) fn share_granularity(&self) -> Option<usize> {
        match self {
            Self::Slab(_) => None,
            Self::Blocks(_) => Some(TILE_TOKENS),
        }
    }

    /// Copies `tokens` of one row to the same places of another.
    pub(crate) fn copy(&mut self, from: usize, to: usize, tokens: Range<usize>) -> Result<(), String> {
        match self {
            Self::Slab(slab) => slab.copy(from, to, tokens),
            Self::Blocks(blocks) => {
                blocks.copy(from, to, &tokens);
                Ok(())
            }
        }
    }

    /// Gives the memory after the first `len` tokens of a row back to the system.
    pub(crate) fn shrink(&mut self, row: usize, len: usize) {
        match self {
            Self::Slab(slab) => slab.shrink(row, len),
            Self::Blocks(blocks) => blocks.shrink(row, len),
        }
    }

    /// Appends the first `len` tokens of a row to `out`.
    pub(crate) fn read(&self, row: usize, len: usize, out: &mut Vec<u8>) -> Result<(), String> {
        match self {
            Self::Slab(slab) => slab.read(row, len, out),
            Self::Blocks(blocks) => {
                blocks.read(row, len, out);
                Ok(())
            }
        }
    }

    /// Writes what [`KvMemory::read`] returned. `bytes` must be exactly that long.
    pub(crate) fn write(&mut self, row: usize, len: usize, bytes: &[u8]) -> Result<(), String> {
        match self {
            Self::Slab(slab) => slab.write(row, len, bytes),
            Self::Blocks(blocks) => blocks.write(row, len, bytes),
        }
    }
}
