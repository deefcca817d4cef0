//! The kernels by element type and head size: packing queries, storing keys and values, one tile of attention.

#![allow(
    clippy::cast_ptr_alignment,
    reason = "blocks and packed queries begin at multiples of 64 bytes, and so do their parts at multiples of 4"
)]

use super::layout::BlockElement;
use super::softmax::{KvTile, Query};
use super::{LANES, f32_tile, hadamard, i8_tile};

/// The dimensions of the heads.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Heads {
    /// Heads of queries.
    pub(crate) queries: usize,
    /// Heads of keys and values; each serves the same number of query heads.
    pub(crate) keys: usize,
    /// Values of a vector.
    pub(crate) size: usize,
    /// The factor of the scores.
    pub(crate) scale: f32,
}

/// The largest head.
const MAX_SIZE: usize = 8 * LANES;

/// Whether there is a kernel for heads of this size.
pub(crate) fn supports(size: usize) -> bool {
    size.is_multiple_of(LANES) && (LANES..=MAX_SIZE).contains(&size)
}

/// The rotation of one token's vectors: cosines and sines of the pairs that are rotated.
#[derive(Clone, Copy)]
pub(crate) struct Rope<'a> {
    pub(crate) cosines: &'a [f32],
    pub(crate) sines: &'a [f32],
}

/// The bytes of a packed query.
pub(crate) fn query_bytes(element: BlockElement, size: usize) -> usize {
    match element {
        BlockElement::F32 => size * 4,
        BlockElement::I8 => i8_tile::query_bytes(size),
    }
}

/// Rotates, scales and packs a query vector.
///
/// # Safety
/// The processor has AVX-512; `to` has room for [`query_bytes`], at an address that 8 divides; [`supports`] its size.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
pub(crate) unsafe fn pack_query(
    element: BlockElement,
    vector: &[f32],
    rope: Rope<'_>,
    scale: f32,
    to: *mut u8,
) {
    let mut rotated = [0f32; MAX_SIZE];
    let rotated = &mut rotated[..vector.len()];
    rotate(vector, rope, scale, rotated);
    // SAFETY: as the caller guarantees.
    unsafe {
        match element {
            BlockElement::F32 => to
                .cast::<f32>()
                .copy_from_nonoverlapping(rotated.as_ptr(), rotated.len()),
            BlockElement::I8 => {
                hadamard::transform(rotated);
                i8_tile::pack_query(rotated, to);
            }
        }
    }
}

/// Rotates a token's key and writes key and value to a head's part of a block.
///
/// # Safety
/// The processor has AVX-512; `head` points to the part of a head of the size of `key` and `value`, which [`supports`]; no
/// other code uses the token meanwhile.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
pub(crate) unsafe fn store(
    element: BlockElement,
    head: *mut u8,
    token: usize,
    key: &[f32],
    rope: Rope<'_>,
    value: &[f32],
) {
    let mut rotated = [0f32; MAX_SIZE];
    let rotated = &mut rotated[..key.len()];
    rotate(key, rope, 1.0, rotated);
    // SAFETY: as the caller guarantees.
    unsafe {
        match element {
            BlockElement::F32 => f32_tile::store(head, token, rotated, value),
            BlockElement::I8 => {
                hadamard::transform(rotated);
                let mut spread = [0f32; MAX_SIZE];
                let spread = &mut spread[..value.len()];
                spread.copy_from_slice(value);
                hadamard::transform(spread);
                i8_tile::store(head, token, rotated, spread);
            }
        }
    }
}

/// Adds a tile to the softmax of all queries, a few at a time so that their sums stay in registers.
///
/// # Safety
/// As for [`f32_tile::tile`] and [`i8_tile::tile`].
pub(crate) unsafe fn tile(element: BlockElement, size: usize, queries: &mut [Query], tile: KvTile) {
    macro_rules! by {
        ($kernel:ident, $pieces:literal, $most:literal) => {{
            let mut tile = tile;
            let mut few = queries.chunks_exact_mut($most);
            for queries in &mut few {
                // A query sees no further than the last of its chunk, unless they are of several rows.
                let part = cut(tile, queries);
                // SAFETY: as the caller guarantees.
                unsafe { $kernel::tile::<$pieces, $most>(queries, part) };
                // It is in the caches by now.
                tile.next = None;
            }
            let rest = few.into_remainder();
            let part = cut(tile, rest);
            // SAFETY: as the caller guarantees.
            unsafe {
                match rest.len() {
                    0 => {}
                    1 => $kernel::tile::<$pieces, 1>(rest, part),
                    2 => $kernel::tile::<$pieces, 2>(rest, part),
                    _ => $kernel::tile::<$pieces, 3>(rest, part),
                }
            }
        }};
    }
    macro_rules! sized {
        ($kernel:ident) => {
            match size / LANES {
                1 => by!($kernel, 1, 4),
                2 => by!($kernel, 2, 4),
                3 => by!($kernel, 3, 4),
                4 => by!($kernel, 4, 4),
                5 => by!($kernel, 5, 4),
                6 => by!($kernel, 6, 4),
                7 => by!($kernel, 7, 3),
                _ => by!($kernel, 8, 3),
            }
        };
    }
    match element {
        BlockElement::F32 => sized!(f32_tile),
        BlockElement::I8 => sized!(i8_tile),
    }
}

/// The tile up to the last token that any of the queries sees.
fn cut(tile: KvTile, queries: &[Query]) -> KvTile {
    let seen = queries.iter().map(|query| tile.visible(query)).max().unwrap_or(0);
    KvTile {
        count: seen.max(1),
        ..tile
    }
}

/// Divides the sum of a query by its weights.
///
/// # Safety
/// As for [`tile`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
pub(crate) unsafe fn conclude(element: BlockElement, query: &Query, size: usize) {
    // SAFETY: as the caller guarantees.
    let sum = unsafe { std::slice::from_raw_parts_mut(query.sum, size) };
    for value in &mut *sum {
        *value /= query.weight;
    }
    if element == BlockElement::I8 {
        hadamard::transform(sum);
    }
}

/// Rotates pairs `half` apart and scales all values.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
#[inline]
fn rotate(vector: &[f32], Rope { cosines, sines }: Rope<'_>, scale: f32, to: &mut [f32]) {
    let half = cosines.len();
    let (low, rest) = vector.split_at(half);
    let (high, rest) = rest.split_at(half);
    let (to_low, to_rest) = to.split_at_mut(half);
    let (to_high, to_rest) = to_rest.split_at_mut(half);
    for at in 0..half {
        to_low[at] = (low[at] * cosines[at] - high[at] * sines[at]) * scale;
        to_high[at] = (high[at] * cosines[at] + low[at] * sines[at]) * scale;
    }
    for (to, value) in to_rest.iter_mut().zip(rest) {
        *to = value * scale;
    }
}
