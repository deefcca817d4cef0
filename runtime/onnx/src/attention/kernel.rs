//! The kernels by instruction set, element type and head size: packing queries, storing keys and values, one tile of attention.

#![allow(
    clippy::cast_ptr_alignment,
    reason = "blocks and packed queries begin at multiples of 64 bytes, and so do their parts at multiples of 4"
)]

use super::layout::{BLOCK_TOKENS, BlockElement, MAX_SIZE};
use super::softmax::{KvTile, Query};
#[cfg(target_arch = "x86_64")]
use super::vectors::avx2_vector::{Avx2, Vnni256Evex, Vnni256Vex};
#[cfg(target_arch = "x86_64")]
use super::vectors::avx512_vector::Avx512;
#[cfg(target_arch = "aarch64")]
use super::vectors::neon_vector::{Neon, NeonDot};
use super::vectors::scalar_vector::OneLane;
use super::vectors::{ByteProducts, Vector};
use super::{f32_tile, hadamard, i8_tile};
use crate::isa::Isa;

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

/// Whether there is a kernel for heads of this size.
pub(crate) fn supports(size: usize) -> bool {
    size.is_multiple_of(BLOCK_TOKENS) && (BLOCK_TOKENS..=MAX_SIZE).contains(&size)
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

/// The kernels of one instruction set.
///
/// # Safety
/// Of each function: the processor has the instruction set, which [`AttentionKernels::of`] does not check.
pub(crate) struct AttentionKernels {
    /// Rotates, scales and packs a query vector.
    ///
    /// # Safety
    /// The place has room for [`query_bytes`], at an address that 8 divides; [`supports`] its size.
    pub(crate) pack_query: unsafe fn(BlockElement, &[f32], Rope<'_>, scale: f32, to: *mut u8),
    /// Rotates a token's key and writes key and value to a head's part of a block.
    ///
    /// # Safety
    /// The head's part is of the size of key and value, which [`supports`]; no other code uses the token meanwhile.
    pub(crate) store: unsafe fn(BlockElement, HeadToken, key: &[f32], Rope<'_>, value: &[f32]),
    /// Adds a tile to the softmax of all queries, a few at a time so that their sums stay in registers.
    ///
    /// # Safety
    /// As for [`f32_tile::tile`].
    pub(crate) tile: unsafe fn(BlockElement, size: usize, &mut [Query], KvTile),
    /// Divides the sum of a query by its weights.
    ///
    /// # Safety
    /// As for [`f32_tile::tile`].
    pub(crate) conclude: unsafe fn(BlockElement, &Query, size: usize),
}

/// A token's place in a head's part of a block.
#[derive(Debug, Clone, Copy)]
pub(crate) struct HeadToken {
    pub(crate) head: *mut u8,
    pub(crate) token: usize,
}

impl AttentionKernels {
    /// The kernels of an instruction set.
    pub(crate) fn of(isa: Isa) -> &'static Self {
        match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Vnni => &avx512::KERNELS,
            #[cfg(target_arch = "x86_64")]
            Isa::AvxVnni if isa.has_evex_dot_products() => &vnni256_evex::KERNELS,
            #[cfg(target_arch = "x86_64")]
            Isa::AvxVnni => &vnni256_vex::KERNELS,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => &avx2::KERNELS,
            #[cfg(target_arch = "aarch64")]
            Isa::NeonDot => &neon_dot::KERNELS,
            #[cfg(target_arch = "aarch64")]
            Isa::Neon => &neon::KERNELS,
            _ => &scalar::KERNELS,
        }
    }

    /// All kernels that this processor can run, with a name for each: more than one instruction set has a form.
    #[cfg(test)]
    pub(crate) fn all() -> Vec<(&'static str, &'static Self)> {
        #[cfg_attr(not(target_arch = "x86_64"), allow(unused_mut))]
        let mut all: Vec<(&str, &Self)> = Isa::ALL
            .into_iter()
            .filter(|isa| isa.is_supported())
            .map(|isa| (isa.as_str(), Self::of(isa)))
            .collect();
        #[cfg(target_arch = "x86_64")]
        if std::arch::is_x86_feature_detected!("avxvnni") {
            all.push(("avxvnni, VEX", &vnni256_vex::KERNELS));
        }
        all
    }
}

/// The kernels of an instruction set from the common source: each function is compiled with its features, and all that it
/// calls is inlined.
macro_rules! kernels {
    ($name:ident, $vector:ty, $bytes:ty, [$($most:literal),*] $(, $features:literal)?) => {
        mod $name {
            use super::{AttentionKernels, BlockElement, HeadToken, KvTile, Query, Rope, conclude, pack_query, store};

            pub(super) static KERNELS: AttentionKernels = AttentionKernels {
                pack_query: pack,
                store: put,
                tile,
                conclude: end,
            };

            $(#[target_feature(enable = $features)])?
            unsafe fn pack(element: BlockElement, vector: &[f32], rope: Rope<'_>, scale: f32, to: *mut u8) {
                // SAFETY: as the caller guarantees.
                unsafe { pack_query::<$bytes>(element, vector, rope, scale, to) };
            }

            $(#[target_feature(enable = $features)])?
            unsafe fn put(element: BlockElement, to: HeadToken, key: &[f32], rope: Rope<'_>, value: &[f32]) {
                // SAFETY: as the caller guarantees.
                unsafe { store::<$vector>(element, to, key, rope, value) };
            }

            $(#[target_feature(enable = $features)])?
            unsafe fn end(element: BlockElement, query: &Query, size: usize) {
                // SAFETY: as the caller guarantees.
                unsafe { conclude::<$vector>(element, query, size) };
            }

            #[inline(never)]
            $(#[target_feature(enable = $features)])?
            unsafe fn f32_tile<const PIECES: usize, const ROWS: usize>(queries: &mut [Query], tile: KvTile) {
                // SAFETY: as the caller guarantees.
                unsafe { super::f32_tile::tile::<$vector, PIECES, ROWS>(queries, tile) };
            }

            #[inline(never)]
            $(#[target_feature(enable = $features)])?
            unsafe fn i8_tile<const PIECES: usize, const ROWS: usize>(queries: &mut [Query], tile: KvTile) {
                // SAFETY: as the caller guarantees.
                unsafe { super::i8_tile::tile::<$bytes, PIECES, ROWS>(queries, tile) };
            }

            unsafe fn tile(element: BlockElement, size: usize, queries: &mut [Query], tile: KvTile) {
                // SAFETY: as the caller guarantees.
                unsafe {
                    match element {
                        BlockElement::F32 => by_size!(f32_tile, size, queries, tile, [$($most),*]),
                        BlockElement::I8 => by_size!(i8_tile, size, queries, tile, [$($most),*]),
                    }
                }
            }
        }
    };
}

/// Runs a kernel for heads of a size: `$most` queries at a time for heads of 16, 32 … 128 values.
macro_rules! by_size {
    ($kernel:ident, $size:expr, $queries:expr, $tile:expr, [$m1:literal, $m2:literal, $m3:literal, $m4:literal, $m5:literal, $m6:literal, $m7:literal, $m8:literal]) => {
        match $size / super::BLOCK_TOKENS {
            1 => by_rows!($kernel, 1, $m1, $queries, $tile),
            2 => by_rows!($kernel, 2, $m2, $queries, $tile),
            3 => by_rows!($kernel, 3, $m3, $queries, $tile),
            4 => by_rows!($kernel, 4, $m4, $queries, $tile),
            5 => by_rows!($kernel, 5, $m5, $queries, $tile),
            6 => by_rows!($kernel, 6, $m6, $queries, $tile),
            7 => by_rows!($kernel, 7, $m7, $queries, $tile),
            _ => by_rows!($kernel, 8, $m8, $queries, $tile),
        }
    };
}

/// Runs a kernel for `$most` queries at a time, then for the rest.
macro_rules! by_rows {
    ($kernel:ident, $pieces:literal, $most:literal, $queries:expr, $tile:expr) => {{
        let mut tile = $tile;
        let mut few = $queries.chunks_exact_mut($most);
        for queries in &mut few {
            // A query sees no further than the last of its chunk, unless they are of several rows.
            let part = super::cut(tile, queries);
            $kernel::<$pieces, $most>(queries, part);
            // It is in the caches by now.
            tile.next = None;
        }
        let rest = few.into_remainder();
        let part = super::cut(tile, rest);
        match rest.len() {
            0 => {}
            1 => $kernel::<$pieces, 1>(rest, part),
            2 => $kernel::<$pieces, 2>(rest, part),
            _ => $kernel::<$pieces, 3>(rest, part),
        }
    }};
}

kernels!(scalar, super::OneLane, super::OneLane, [3, 3, 3, 3, 3, 3, 3, 3]);
#[cfg(target_arch = "x86_64")]
kernels!(
    avx512,
    super::Avx512,
    super::Avx512,
    [4, 4, 4, 4, 4, 4, 3, 3],
    "avx512f,avx512bw,avx512vl,avx512vnni"
);
#[cfg(target_arch = "x86_64")]
kernels!(
    vnni256_evex,
    super::Avx2,
    super::Vnni256Evex,
    [3, 3, 3, 3, 3, 3, 3, 3],
    "avx2,fma,f16c,avx512f,avx512vl,avx512vnni"
);
#[cfg(target_arch = "x86_64")]
kernels!(
    vnni256_vex,
    super::Avx2,
    super::Vnni256Vex,
    [3, 3, 3, 3, 3, 3, 3, 3],
    "avx2,fma,f16c,avxvnni"
);
#[cfg(target_arch = "x86_64")]
kernels!(
    avx2,
    super::Avx2,
    super::Avx2,
    [3, 3, 3, 3, 3, 3, 3, 3],
    "avx2,fma,f16c"
);
#[cfg(target_arch = "aarch64")]
kernels!(
    neon_dot,
    super::Neon,
    super::NeonDot,
    [4, 4, 4, 4, 4, 4, 4, 4],
    "dotprod"
);
#[cfg(target_arch = "aarch64")]
kernels!(neon, super::Neon, super::Neon, [4, 4, 4, 4, 4, 4, 4, 4]);

/// As [`AttentionKernels::pack_query`].
#[inline(always)]
unsafe fn pack_query<B: ByteProducts>(
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
                hadamard::transform::<B::Lanes>(rotated);
                i8_tile::pack_query::<B>(rotated, to);
            }
        }
    }
}

/// As [`AttentionKernels::store`].
#[inline(always)]
unsafe fn store<V: Vector>(
    element: BlockElement,
    HeadToken { head, token }: HeadToken,
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
                hadamard::transform::<V>(rotated);
                let mut spread = [0f32; MAX_SIZE];
                let spread = &mut spread[..value.len()];
                spread.copy_from_slice(value);
                hadamard::transform::<V>(spread);
                i8_tile::store::<V>(head, token, rotated, spread);
            }
        }
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

/// As [`AttentionKernels::conclude`].
#[inline(always)]
unsafe fn conclude<V: Vector>(element: BlockElement, query: &Query, size: usize) {
    // SAFETY: as the caller guarantees.
    unsafe {
        let sum = std::slice::from_raw_parts_mut(query.sum, size);
        for value in &mut *sum {
            *value /= query.weight;
        }
        if element == BlockElement::I8 {
            hadamard::transform::<V>(sum);
        }
    }
}

/// Rotates pairs `half` apart and scales all values.
#[inline(always)]
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
