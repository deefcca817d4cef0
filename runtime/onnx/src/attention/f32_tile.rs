//! Attention over one tile of keys and values of 32-bit floats.

#![allow(
    clippy::cast_ptr_alignment,
    reason = "blocks and packed queries begin at multiples of 64 bytes, and so do their parts at multiples of 4"
)]

use super::layout::{BLOCK_TOKENS, BlockElement, TILE_TOKENS};
use super::softmax::{KvTile, Query, TileScores, weigh};
use super::vectors::Vector;

/// Partial sums of a score, so that an addition need not wait for the one before it.
const PARTIAL_SUMS: usize = 4;

/// Adds a tile to the softmax of `ROWS` queries, which hold their vectors as `f32 [PIECES * 16]`.
///
/// The result of a query depends on its own vector and on the tokens that it attends to, to the last bit: the operations
/// on each and their order are the same whatever is beside it.
///
/// # Safety
/// The processor has the instruction set. Each query points to its vector and to as many values of its sum; the tile's blocks
/// hold `count` tokens of heads of that size. No other code writes to any of them meanwhile.
#[inline(always)]
pub(crate) unsafe fn tile<V: Vector, const PIECES: usize, const ROWS: usize>(
    queries: &mut [Query],
    tile: KvTile,
) {
    let size = PIECES * BLOCK_TOKENS;
    let mut weights = [TileScores::ZERO; ROWS];
    let mut shrinks = [1f32; ROWS];
    // SAFETY: as the caller guarantees.
    unsafe {
        for block in 0..tile.blocks() {
            for lane in (0..BLOCK_TOKENS).step_by(V::LANES) {
                scores::<V, PIECES, ROWS>(queries, tile, (block, lane), &mut weights);
            }
        }
        for row in 0..ROWS {
            let visible = tile.visible(&queries[row]);
            shrinks[row] = weigh::<V>(&mut queries[row], &mut weights[row], visible);
        }
        let weighted = Weighted {
            weights: &weights,
            shrinks: &shrinks,
        };
        // As many registers of a vector at a time as there is room for.
        if V::LANES == BLOCK_TOKENS {
            add_values::<V, PIECES, PIECES, ROWS>(queries, tile, 0, &weighted);
            return;
        }
        let mut from = 0;
        while from < size {
            let registers = (size - from) / V::LANES;
            if registers >= 4 {
                add_values::<V, PIECES, 4, ROWS>(queries, tile, from, &weighted);
                from += 4 * V::LANES;
            } else {
                add_values::<V, PIECES, 2, ROWS>(queries, tile, from, &weighted);
                from += 2 * V::LANES;
            }
        }
    }
}

/// The weights of a tile's tokens for each query, and the factors of its sum so far.
struct Weighted<'a, const ROWS: usize> {
    weights: &'a [TileScores; ROWS],
    shrinks: &'a [f32; ROWS],
}

/// Adds the values of a tile to `PART` registers of the sums of each query, from value `from` on.
///
/// # Safety
/// As for [`tile`].
#[inline(always)]
#[allow(clippy::needless_range_loop, reason = "indices into arrays of registers")]
unsafe fn add_values<V: Vector, const PIECES: usize, const PART: usize, const ROWS: usize>(
    queries: &[Query],
    tile: KvTile,
    from: usize,
    weighted: &Weighted<'_, ROWS>,
) {
    let size = PIECES * BLOCK_TOKENS;
    // SAFETY: as the caller guarantees.
    unsafe {
        let mut sums = [[V::set(0.0); PART]; ROWS];
        for row in 0..ROWS {
            let shrink = V::set(weighted.shrinks[row]);
            for part in 0..PART {
                sums[row][part] = V::mul(V::load(queries[row].sum.add(from + part * V::LANES)), shrink);
            }
        }
        for token in 0..tile.count.min(TILE_TOKENS) {
            let (block, at) = (token / BLOCK_TOKENS, token % BLOCK_TOKENS);
            let values = tile
                .block(block)
                .add(BlockElement::F32.values_offset(size))
                .cast::<f32>();
            if from == 0 {
                tile.prefetch(block, (BLOCK_TOKENS + at) * PIECES, PIECES);
            }
            for part in 0..PART {
                let values = V::load(values.add(at * size + from + part * V::LANES));
                for row in 0..ROWS {
                    let weight = V::set(weighted.weights[row].0[token]);
                    sums[row][part] = V::mul_add(weight, values, sums[row][part]);
                }
            }
        }
        for row in 0..ROWS {
            for part in 0..PART {
                V::store(queries[row].sum.add(from + part * V::LANES), sums[row][part]);
            }
        }
    }
}

/// Scores of a register's keys, from `lane` of `block` on, for each query: products of the vectors.
///
/// # Safety
/// As for [`tile`].
#[inline(always)]
#[allow(clippy::needless_range_loop, reason = "indices into arrays of registers")]
unsafe fn scores<V: Vector, const PIECES: usize, const ROWS: usize>(
    queries: &[Query],
    tile: KvTile,
    (block, lane): (usize, usize),
    scores: &mut [TileScores; ROWS],
) {
    let keys = tile.block(block).cast::<f32>().wrapping_add(lane);
    // SAFETY: as the caller guarantees.
    unsafe {
        let mut sums = [[V::set(0.0); PARTIAL_SUMS]; ROWS];
        for at in (0..PIECES * BLOCK_TOKENS).step_by(PARTIAL_SUMS) {
            if lane == 0 {
                tile.prefetch(block, at, PARTIAL_SUMS);
            }
            for part in 0..PARTIAL_SUMS {
                let values = V::load(keys.add((at + part) * BLOCK_TOKENS));
                for row in 0..ROWS {
                    let value = V::set(*queries[row].vector.cast::<f32>().add(at + part));
                    sums[row][part] = V::mul_add(value, values, sums[row][part]);
                }
            }
        }
        for row in 0..ROWS {
            let [a, b, c, d] = sums[row];
            let score = V::add(V::add(a, b), V::add(c, d));
            V::store(scores[row].0.as_mut_ptr().add(block * BLOCK_TOKENS + lane), score);
        }
    }
}

/// Writes a token's key and value to a head's part of a block.
///
/// # Safety
/// `head` points to the part of a head of the size of `key` and `value`; no other code uses the token meanwhile.
#[inline(always)]
pub(crate) unsafe fn store(head: *mut u8, token: usize, key: &[f32], value: &[f32]) {
    let keys = head.cast::<f32>();
    for (at, key) in key.iter().enumerate() {
        // SAFETY: as the caller guarantees.
        unsafe { *keys.add(at * BLOCK_TOKENS + token) = *key };
    }
    // SAFETY: as above.
    unsafe {
        let values = head.add(BlockElement::F32.values_offset(key.len())).cast::<f32>();
        std::ptr::copy_nonoverlapping(value.as_ptr(), values.add(token * value.len()), value.len());
    }
}
