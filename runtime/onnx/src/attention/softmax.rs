//! The online softmax of query vectors over tiles of tokens (Milakov and Gimelshein, arXiv 1805.02867; by tiles: Dao et
//! al., arXiv 2205.14135).

use super::layout::{BLOCK_TOKENS, TILE_BLOCKS, TILE_TOKENS};
use super::vectors::{Vector, tree_sum};
use crate::exp2_series::EXP2_SERIES;
use crate::mul_add::mul_add;
use crate::prefetch::prefetch;

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
        self.count.div_ceil(BLOCK_TOKENS).min(TILE_BLOCKS)
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
                prefetch(at);
            }
        }
    }
}

/// Scores or weights of one query for a tile.
#[derive(Clone, Copy)]
#[repr(align(64))]
pub(crate) struct TileScores(pub(crate) [f32; TILE_TOKENS]);

impl TileScores {
    pub(crate) const ZERO: Self = Self([0.0; TILE_TOKENS]);
}

/// Turns scores into weights, and returns the factor of the sum so far. What the query does not see weighs 0; a tile that it
/// does not see at all changes nothing.
///
/// # Safety
/// The processor has the instruction set.
#[inline(always)]
pub(crate) unsafe fn weigh<V: Vector>(query: &mut Query, scores: &mut TileScores, visible: usize) -> f32 {
    if visible == 0 {
        *scores = TileScores::ZERO;
        return 1.0;
    }
    let scores = scores.0.as_mut_ptr();
    // SAFETY: as the caller guarantees; the scores are those of a tile's tokens.
    unsafe {
        let lowest = V::set(f32::NEG_INFINITY);
        let mut largest = lowest;
        for at in (0..TILE_TOKENS).step_by(V::LANES) {
            let seen = V::first(visible.saturating_sub(at), V::load(scores.add(at)), lowest);
            largest = V::max(largest, seen);
        }
        let largest = query.largest.max(V::largest(largest));
        let mut totals = [0f32; BLOCK_TOKENS];
        for lane in (0..BLOCK_TOKENS).step_by(V::LANES) {
            let mut total = V::set(0.0);
            for at in (lane..TILE_TOKENS).step_by(BLOCK_TOKENS) {
                let weight = exp2::<V>(V::sub(V::load(scores.add(at)), V::set(largest)));
                let weight = V::first(visible.saturating_sub(at), weight, V::set(0.0));
                V::store(scores.add(at), weight);
                total = V::add(total, weight);
            }
            V::store(totals.as_mut_ptr().add(lane), total);
        }
        let mut shrinks = [0f32; BLOCK_TOKENS];
        V::store(shrinks.as_mut_ptr(), exp2::<V>(V::set(query.largest - largest)));
        query.weight = mul_add(query.weight, shrinks[0], tree_sum(&totals));
        query.largest = largest;
        shrinks[0]
    }
}

/// 2^x for x of at most 0, exactly 1 for 0; what is below 2^-126 need not be exact.
///
/// # Safety
/// The processor has the instruction set.
#[inline(always)]
unsafe fn exp2<V: Vector>(x: V::Floats) -> V::Floats {
    // SAFETY: as the caller guarantees.
    unsafe {
        let x = V::max(x, V::set(-126.0));
        let whole = V::round(x);
        let part = V::sub(x, whole);
        let mut sum = V::set(EXP2_SERIES[0]);
        for factor in &EXP2_SERIES[1..] {
            sum = V::mul_add(sum, part, V::set(*factor));
        }
        V::scale(V::mul_add(sum, part, V::set(1.0)), whole)
    }
}
