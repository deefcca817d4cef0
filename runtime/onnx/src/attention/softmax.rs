//! The online softmax of query vectors over tiles of tokens (Milakov and Gimelshein, arXiv 1805.02867; by tiles: Dao et
//! al., arXiv 2205.14135).

use std::arch::x86_64::{
    __m512, _MM_HINT_T0, _mm_prefetch, _mm512_add_ps, _mm512_fmadd_ps, _mm512_mask_mov_ps,
    _mm512_maskz_mov_ps, _mm512_max_ps, _mm512_reduce_add_ps, _mm512_reduce_max_ps, _mm512_roundscale_ps,
    _mm512_scalef_ps, _mm512_set1_ps, _mm512_setzero_ps, _mm512_sub_ps,
};

use super::LANES;
use super::layout::{TILE_BLOCKS, TILE_TOKENS};

/// The running softmax of one query vector.
pub(crate) struct Query {
    /// The vector in the form of its kernel, scaled by what scores are scaled with and by log2(e).
    pub(crate) vector: *const u8,
    /// The number of tokens that it attends to: those before its own token, and that.
    pub(crate) sees: usize,
    /// The sum of values, weighted by 2^(score - `largest`): as many as the head's size.
    pub(crate) sum: *mut f32,
    pub(crate) largest: f32,
    /// The sum of the weights.
    pub(crate) weight: f32,
}

/// A head's part of the blocks of one tile.
#[derive(Clone, Copy)]
pub(crate) struct KvTile {
    /// Of the first block.
    pub(crate) first: *const u8,
    /// The bytes from one block to the next.
    pub(crate) stride: usize,
    /// The place of the tile's first token in the sequence.
    pub(crate) from: usize,
    /// Tokens of the tile that any of the queries attends to: 1 to [`TILE_TOKENS`].
    pub(crate) count: usize,
    /// The head's part of the tile that is read after this one, prefetched meanwhile.
    pub(crate) next: Option<*const u8>,
}

impl KvTile {
    /// Blocks with tokens that count.
    pub(crate) fn blocks(&self) -> usize {
        self.count.div_ceil(LANES).min(TILE_BLOCKS)
    }

    /// The head's part of a block.
    pub(crate) fn block(&self, block: usize) -> *const u8 {
        self.first.wrapping_add(block * self.stride)
    }

    /// Tokens of the tile that `query` attends to.
    pub(crate) fn visible(&self, query: &Query) -> usize {
        query.sees.saturating_sub(self.from).min(self.count)
    }

    /// Prefetches `lines` cache lines of a block of the next tile, from `line` on.
    #[inline]
    pub(crate) fn prefetch(&self, block: usize, line: usize, lines: usize) {
        if let Some(next) = self.next {
            for line in line..line + lines {
                let at = next.wrapping_add(block * self.stride + line * 64);
                // SAFETY: a prefetch reads nothing: an invalid address is ignored.
                unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast::<i8>()) };
            }
        }
    }
}

/// Scores or weights of one query for a tile.
pub(crate) type TileScores = [__m512; TILE_BLOCKS];

/// Turns scores into weights, and returns the factor of the sum so far. What the query does not see weighs 0; a tile that it
/// does not see at all changes nothing.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
#[inline]
pub(crate) fn weigh(query: &mut Query, scores: &mut TileScores, visible: usize) -> __m512 {
    if visible == 0 {
        *scores = [_mm512_setzero_ps(); TILE_BLOCKS];
        return _mm512_set1_ps(1.0);
    }
    let mut largest = _mm512_set1_ps(f32::NEG_INFINITY);
    for (block, score) in scores.iter().enumerate() {
        let known = _mm512_mask_mov_ps(largest, mask(visible, block), *score);
        largest = _mm512_max_ps(largest, known);
    }
    let largest = query.largest.max(_mm512_reduce_max_ps(largest));
    let mut total = _mm512_setzero_ps();
    for (block, score) in scores.iter_mut().enumerate() {
        let weight = exp2(_mm512_sub_ps(*score, _mm512_set1_ps(largest)));
        *score = _mm512_maskz_mov_ps(mask(visible, block), weight);
        total = _mm512_add_ps(total, *score);
    }
    let shrink = exp2(_mm512_set1_ps(query.largest - largest));
    query.weight = query.weight.mul_add(first(shrink), _mm512_reduce_add_ps(total));
    query.largest = largest;
    shrink
}

/// The mask of a block's tokens that are among the tile's first `count`.
#[inline]
pub(crate) fn mask(count: usize, block: usize) -> u16 {
    debug_assert!(count <= TILE_TOKENS);
    match count.saturating_sub(block * LANES) {
        lanes if lanes >= LANES => 0xffff,
        lanes => (1 << lanes) - 1,
    }
}

/// 2^x for x of at most 0, exactly 1 for 0; what is below 2^-126 need not be exact.
#[target_feature(enable = "avx512f")]
#[inline]
fn exp2(x: __m512) -> __m512 {
    // The Taylor series of 2^f for f in -0.5..0.5: what is left out is below 1e-8.
    const SERIES: [f32; 7] = [
        1.525_273_4e-5,
        1.540_353e-4,
        1.333_355_8e-3,
        9.618_129e-3,
        5.550_411e-2,
        2.402_265e-1,
        6.931_472e-1,
    ];
    let x = _mm512_max_ps(x, _mm512_set1_ps(-126.0));
    let whole = _mm512_roundscale_ps::<0>(x);
    let part = _mm512_sub_ps(x, whole);
    let mut sum = _mm512_set1_ps(SERIES[0]);
    for factor in &SERIES[1..] {
        sum = _mm512_fmadd_ps(sum, part, _mm512_set1_ps(*factor));
    }
    _mm512_scalef_ps(_mm512_fmadd_ps(sum, part, _mm512_set1_ps(1.0)), whole)
}

#[target_feature(enable = "avx512f")]
#[inline]
fn first(register: __m512) -> f32 {
    std::arch::x86_64::_mm512_cvtss_f32(register)
}
