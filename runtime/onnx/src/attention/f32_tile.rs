//! Attention over one tile of keys and values of 32-bit floats.

#![allow(
    clippy::cast_ptr_alignment,
    reason = "blocks and packed queries begin at multiples of 64 bytes, and so do their parts at multiples of 4"
)]

use std::arch::x86_64::{
    __m512, _mm512_add_ps, _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_mul_ps, _mm512_set1_ps,
    _mm512_setzero_ps, _mm512_storeu_ps,
};

use super::LANES;
use super::layout::{BLOCK_TOKENS, BlockElement, TILE_BLOCKS, TILE_TOKENS};
use super::softmax::{KvTile, Query, TileScores, weigh};

/// Partial sums of a score, so that an addition need not wait for the one before it.
const PARTIAL_SUMS: usize = 4;

/// Adds a tile to the softmax of `ROWS` queries, which hold their vectors as `f32 [size]`.
///
/// The result of a query depends on its own vector and on the tokens that it attends to, to the last bit: the operations
/// on each and their order are the same whatever is beside it.
///
/// # Safety
/// The processor has AVX-512. Each query points to `PIECES * 16` values and as many of its sum; the tile's blocks hold
/// `count` tokens of heads of that size. No other code writes to any of them meanwhile.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
#[allow(clippy::needless_range_loop, reason = "indices into arrays of registers")]
pub(crate) unsafe fn tile<const PIECES: usize, const ROWS: usize>(queries: &mut [Query], tile: KvTile) {
    let size = PIECES * LANES;
    let mut weights = [[_mm512_setzero_ps(); TILE_BLOCKS]; ROWS];
    let mut shrinks = [_mm512_setzero_ps(); ROWS];
    for block in 0..tile.blocks() {
        // SAFETY: as the caller guarantees.
        unsafe { scores::<PIECES, ROWS>(queries, tile, block, &mut weights) };
    }
    let mut flat = [[0f32; TILE_TOKENS]; ROWS];
    for row in 0..ROWS {
        let visible = tile.visible(&queries[row]);
        shrinks[row] = weigh(&mut queries[row], &mut weights[row], visible);
        for block in 0..TILE_BLOCKS {
            // SAFETY: it has room for all tokens of a tile.
            unsafe { _mm512_storeu_ps(flat[row].as_mut_ptr().add(block * LANES), weights[row][block]) };
        }
    }
    let mut sums = [[_mm512_setzero_ps(); PIECES]; ROWS];
    // SAFETY: as the caller guarantees.
    unsafe {
        for row in 0..ROWS {
            for piece in 0..PIECES {
                let sum = _mm512_loadu_ps(queries[row].sum.add(piece * LANES));
                sums[row][piece] = _mm512_mul_ps(sum, shrinks[row]);
            }
        }
        for token in 0..tile.count {
            let (block, at) = (token / BLOCK_TOKENS, token % BLOCK_TOKENS);
            let values = tile
                .block(block)
                .add(BlockElement::F32.values_offset(size))
                .cast::<f32>();
            tile.prefetch(block, (BLOCK_TOKENS + at) * PIECES, PIECES);
            for piece in 0..PIECES {
                let part = _mm512_loadu_ps(values.add(at * size + piece * LANES));
                for row in 0..ROWS {
                    let weight = _mm512_set1_ps(flat[row][token]);
                    sums[row][piece] = _mm512_fmadd_ps(weight, part, sums[row][piece]);
                }
            }
        }
        for row in 0..ROWS {
            for piece in 0..PIECES {
                _mm512_storeu_ps(queries[row].sum.add(piece * LANES), sums[row][piece]);
            }
        }
    }
}

/// Scores of a block's keys for each query: products of the vectors.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
#[allow(clippy::needless_range_loop, reason = "indices into arrays of registers")]
#[inline]
unsafe fn scores<const PIECES: usize, const ROWS: usize>(
    queries: &[Query],
    tile: KvTile,
    block: usize,
    scores: &mut [TileScores; ROWS],
) {
    let keys = tile.block(block).cast::<f32>();
    let mut sums: [[__m512; PARTIAL_SUMS]; ROWS] = [[_mm512_setzero_ps(); PARTIAL_SUMS]; ROWS];
    for at in (0..PIECES * LANES).step_by(PARTIAL_SUMS) {
        tile.prefetch(block, at, PARTIAL_SUMS);
        for part in 0..PARTIAL_SUMS {
            // SAFETY: as the caller guarantees.
            unsafe {
                let values = _mm512_loadu_ps(keys.add((at + part) * BLOCK_TOKENS));
                for row in 0..ROWS {
                    let value = _mm512_set1_ps(*queries[row].vector.cast::<f32>().add(at + part));
                    sums[row][part] = _mm512_fmadd_ps(value, values, sums[row][part]);
                }
            }
        }
    }
    for row in 0..ROWS {
        let [a, b, c, d] = sums[row];
        scores[row][block] = _mm512_add_ps(_mm512_add_ps(a, b), _mm512_add_ps(c, d));
    }
}

/// Writes a token's key and value to a head's part of a block.
///
/// # Safety
/// `head` points to the part of a head of the size of `key` and `value`; no other code uses the token meanwhile.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
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
