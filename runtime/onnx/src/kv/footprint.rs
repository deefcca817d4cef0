//! The memory that keys and values take, by their type and form and the model's shape.

use super::blocks::BlocksShape;
use super::row_groups;
use super::tensors::KvShape;
use crate::attention::layout::BLOCK_TOKENS;

/// The largest capacity of a row on a device, in quarters of its tokens ([`super::row_groups`]).
const DEVICE_QUARTERS: u64 = 5;

/// The memory that rows of keys and values take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KvFootprint {
    /// The bytes of a token, over all layers, keys and values; on a device with what rows take beyond their tokens.
    pub bytes_per_token: u64,
    /// The tokens by which a row's memory grows.
    pub block_tokens: usize,
    /// The most bytes that a row takes beyond its blocks: what is lost to whole pages.
    pub row_overhead: u64,
}

impl KvFootprint {
    pub(crate) fn of_blocks(shape: &BlocksShape) -> Self {
        Self {
            bytes_per_token: shape.bytes_per_token() as u64,
            block_tokens: BLOCK_TOKENS,
            row_overhead: shape.page_overhead(),
        }
    }

    pub(crate) fn of_tensors(shape: &KvShape) -> Self {
        Self {
            bytes_per_token: shape.bytes_per_token() as u64,
            block_tokens: 1,
            row_overhead: shape.page_overhead(),
        }
    }

    /// Of rows on a device: a token counts for the most that its row's capacity exceeds the row.
    pub(crate) fn on_device(shape: &KvShape) -> Self {
        Self {
            bytes_per_token: (shape.bytes_per_token() as u64 * DEVICE_QUARTERS).div_ceil(4),
            block_tokens: row_groups::BLOCK_TOKENS,
            row_overhead: 0,
        }
    }

    /// Of rows in a pool of blocks of this many tokens.
    pub(crate) fn in_pages(shape: &KvShape, block_tokens: usize) -> Self {
        Self {
            bytes_per_token: shape.bytes_per_token() as u64,
            block_tokens,
            row_overhead: 0,
        }
    }

    /// The bytes of a row of this many tokens.
    pub fn row_bytes(&self, tokens: usize) -> u64 {
        let blocks = tokens.div_ceil(self.block_tokens) as u64;
        let block = self.bytes_per_token * self.block_tokens as u64;
        blocks.saturating_mul(block).saturating_add(self.row_overhead)
    }

    /// The tokens of the largest row that fits `memory` bytes.
    pub fn largest_row(&self, memory: u64) -> usize {
        let block = self.bytes_per_token * self.block_tokens as u64;
        let blocks = memory.saturating_sub(self.row_overhead) / block.max(1);
        usize::try_from(blocks)
            .unwrap_or(usize::MAX)
            .saturating_mul(self.block_tokens)
    }

    /// The longest context that `memory` bytes hold, in tokens: a row has room for one more, the pad token that may stand
    /// behind the last one.
    pub fn context(&self, memory: u64) -> usize {
        self.largest_row(memory).saturating_sub(1)
    }

    /// The number of rows of `tokens` tokens that fit `memory` bytes together.
    pub fn rows(&self, memory: u64, tokens: usize) -> u64 {
        memory / self.row_bytes(tokens).max(1)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{prop_assert, prop_assert_eq, proptest};

    use super::*;
    use crate::attention::layout::BlockElement;
    use crate::raw::Element;

    #[test]
    fn a_token_of_mini_takes_768_kib_or_a_quarter() {
        let blocks = |element| {
            KvFootprint::of_blocks(&BlocksShape {
                layers: 32,
                rows: 1,
                heads: 32,
                head_size: 96,
                capacity: 131_073,
                element,
            })
        };
        assert_eq!(blocks(BlockElement::F32).bytes_per_token, 768 << 10);
        assert_eq!(blocks(BlockElement::I8).bytes_per_token, 200 << 10);
        let tensors = |element| {
            KvFootprint::of_tensors(&KvShape {
                layers: 32,
                rows: 1,
                heads: 32,
                capacity: 131_073,
                head_size: 96,
                element,
            })
        };
        assert_eq!(tensors(Element::F32).bytes_per_token, 768 << 10);
        assert_eq!(tensors(Element::F16).bytes_per_token, 384 << 10);
        assert!(tensors(Element::F32).row_overhead > 10 * blocks(BlockElement::F32).row_overhead);
    }

    proptest! {
        #[test]
        fn what_fits_takes_no_more_than_there_is(
            bytes_per_token in 1_u64..1 << 21, row_overhead in 0_u64..1 << 24, memory in 0_u64..1 << 36, tokens in 1_usize..1 << 18,
        ) {
            let footprint = KvFootprint { bytes_per_token, block_tokens: 16, row_overhead };
            let largest = footprint.largest_row(memory);
            if largest > 0 {
                prop_assert!(footprint.row_bytes(largest) <= memory);
            }
            prop_assert!(footprint.row_bytes(largest + 1) > memory);
            let rows = footprint.rows(memory, tokens);
            prop_assert!(rows * footprint.row_bytes(tokens) <= memory);
            prop_assert!((rows + 1) * footprint.row_bytes(tokens) > memory);
            // A row of one token takes a whole block.
            prop_assert_eq!(footprint.row_bytes(1), footprint.row_bytes(16));
        }
    }
}
