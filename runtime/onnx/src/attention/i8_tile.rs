//! Attention over one tile of keys and values of 8 bits: dot products of bytes with VNNI.
//!
//! Queries are rounded to integers of `QUERY_PARTS` bytes, and a tile's weights (times the scales of the values) to
//! integers of `WEIGHT_PARTS` bytes, each with a scale of its own: what both lose is chosen with docs/decisions/0021.

#![allow(
    clippy::cast_ptr_alignment,
    reason = "blocks and packed queries begin at multiples of 64 bytes, and so do their parts at multiples of 4"
)]

use std::arch::x86_64::{
    __m512, __m512i, _mm_cvtsi32_si128, _mm_storeu_si128, _mm256_loadu_si256, _mm512_abs_ps,
    _mm512_add_epi32, _mm512_cvtepi32_epi8, _mm512_cvtepi32_ps, _mm512_cvtph_ps, _mm512_cvtps_epi32,
    _mm512_dpbusd_epi32, _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_loadu_si512, _mm512_mask_mov_epi8,
    _mm512_maskz_mul_ps, _mm512_max_ps, _mm512_min_ps, _mm512_mul_ps, _mm512_reduce_add_epi32,
    _mm512_reduce_max_ps, _mm512_set1_epi32, _mm512_set1_ps, _mm512_setzero_ps, _mm512_setzero_si512,
    _mm512_sll_epi32, _mm512_slli_epi32, _mm512_srai_epi32, _mm512_srli_epi32, _mm512_storeu_ps,
    _mm512_storeu_si512, _mm512_sub_epi32,
};

use super::LANES;
use super::layout::{BLOCK_TOKENS, BlockElement, TILE_BLOCKS, TILE_TOKENS};
use super::softmax::{Query, Tile, TileScores, mask, weigh};

/// The bytes of a value of a query: 1 or 2.
pub(crate) const QUERY_PARTS: usize = 1;
/// The bytes of a weight: 1 or 2.
const WEIGHT_PARTS: usize = 1;
/// The largest weight as an integer.
const LARGEST_WEIGHT: f32 = if WEIGHT_PARTS == 1 { 255.0 } else { 65_535.0 };
/// Tokens whose values are multiplied by one instruction.
const GROUP_TOKENS: usize = 4;
const GROUPS: usize = BLOCK_TOKENS / GROUP_TOKENS;
/// Keys are stored with this offset, for one factor of a dot product is unsigned.
const KEY_OFFSET: i32 = 128;
/// The bits of the lower part of a query's value.
const LOWER_QUERY_BITS: u32 = 7;
/// The largest integer of a key or a value.
const LARGEST: f32 = 127.0;
/// What a packed query begins with: its scale, then the offset of each part's sum.
const QUERY_HEADER: usize = 64;

/// The bytes of a packed query.
pub(crate) const fn query_bytes(size: usize) -> usize {
    QUERY_HEADER + (QUERY_PARTS * size).next_multiple_of(64)
}

/// Packs a query vector, rotated and scaled.
///
/// # Safety
/// `to` has room for [`query_bytes`], at an address that 4 divides.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
pub(crate) unsafe fn pack_query(vector: &[f32], to: *mut u8) {
    let most = if QUERY_PARTS == 1 {
        LARGEST
    } else {
        LARGEST * 128.0
    };
    let largest = largest(vector);
    let (scale, factor) = if largest > 0.0 {
        (largest / most, most / largest)
    } else {
        (0.0, 0.0)
    };
    let mut sums = [_mm512_setzero_si512(); 2];
    for at in (0..vector.len()).step_by(LANES) {
        // SAFETY: as the caller guarantees; 16 divides the length.
        unsafe {
            let whole = integers(vector.as_ptr().add(at), factor, most);
            let upper = if QUERY_PARTS == 1 {
                whole
            } else {
                let half = _mm512_set1_epi32(1 << (LOWER_QUERY_BITS - 1));
                _mm512_srai_epi32::<LOWER_QUERY_BITS>(_mm512_add_epi32(whole, half))
            };
            let lower = _mm512_sub_epi32(whole, _mm512_slli_epi32::<LOWER_QUERY_BITS>(upper));
            for (part, value) in [upper, lower].into_iter().enumerate().take(QUERY_PARTS) {
                sums[part] = _mm512_add_epi32(sums[part], value);
                let place = to.add(QUERY_HEADER + part * vector.len() + at);
                _mm_storeu_si128(place.cast(), _mm512_cvtepi32_epi8(value));
            }
        }
    }
    // SAFETY: as above.
    unsafe {
        *to.cast::<f32>() = scale;
        for (part, sum) in sums.into_iter().enumerate() {
            *to.cast::<i32>().add(1 + part) = -KEY_OFFSET * _mm512_reduce_add_epi32(sum);
        }
    }
}

/// Writes a token's key and value to a head's part of a block.
///
/// # Safety
/// `head` points to the part of a head of the size of `key` and `value`; no other code uses the token, nor its neighbours
/// in the block, meanwhile.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
pub(crate) unsafe fn store(head: *mut u8, token: usize, key: &[f32], value: &[f32]) {
    let size = key.len();
    let (key_scale, key_factor) = scale(key);
    let (value_scale, value_factor) = scale(value);
    let values = head.wrapping_add(BlockElement::I8.values_offset(size));
    let group = values.wrapping_add(token / GROUP_TOKENS * size * GROUP_TOKENS);
    let place = token % GROUP_TOKENS;
    let shift = _mm_cvtsi32_si128(i32::try_from(8 * place).unwrap_or(0));
    // SAFETY: as the caller guarantees; 16 divides the size.
    unsafe {
        for at in (0..size).step_by(LANES) {
            let whole = integers(key.as_ptr().add(at), key_factor, LARGEST);
            let mut bytes = [0u32; 4];
            let offset = _mm512_add_epi32(whole, _mm512_set1_epi32(KEY_OFFSET));
            _mm_storeu_si128(bytes.as_mut_ptr().cast(), _mm512_cvtepi32_epi8(offset));
            for (index, four) in bytes.into_iter().enumerate() {
                let line = head.add((at / 4 + index) * BLOCK_TOKENS * 4).cast::<u32>();
                line.add(token).write_unaligned(four);
            }
            // The token's byte of each group of four; those of its neighbours stay.
            let whole = _mm512_sll_epi32(integers(value.as_ptr().add(at), value_factor, LARGEST), shift);
            let line = group.add(at * GROUP_TOKENS);
            let old = _mm512_loadu_si512(line.cast());
            let merged = _mm512_mask_mov_epi8(old, 0x1111_1111_1111_1111 << place, whole);
            _mm512_storeu_si512(line.cast(), merged);
        }
        let scales = head.add(2 * BLOCK_TOKENS * size).cast::<u16>();
        *scales.add(token) = key_scale.to_bits();
        *scales.add(BLOCK_TOKENS + token) = value_scale.to_bits();
    }
}

/// Sixteen values as integers, from -`most` to `most`.
#[target_feature(enable = "avx512f")]
#[inline]
unsafe fn integers(values: *const f32, factor: f32, most: f32) -> __m512i {
    // SAFETY: as the caller guarantees.
    let values = unsafe { _mm512_mul_ps(_mm512_loadu_ps(values), _mm512_set1_ps(factor)) };
    let bounded = _mm512_min_ps(_mm512_max_ps(values, _mm512_set1_ps(-most)), _mm512_set1_ps(most));
    _mm512_cvtps_epi32(bounded)
}

/// The largest absolute value of a vector.
#[target_feature(enable = "avx512f")]
#[inline]
fn largest(vector: &[f32]) -> f32 {
    let mut largest = _mm512_setzero_ps();
    for values in vector.chunks_exact(LANES) {
        // SAFETY: the chunk has a register's lanes.
        let values = unsafe { _mm512_loadu_ps(values.as_ptr()) };
        largest = _mm512_max_ps(largest, _mm512_abs_ps(values));
    }
    _mm512_reduce_max_ps(largest)
}

/// The scale of a vector's integers as it is stored, and the factor that gives them.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
#[inline]
fn scale(vector: &[f32]) -> (half::f16, f32) {
    let scale = half::f16::from_f32((largest(vector) / LARGEST).min(65_504.0));
    let stored = scale.to_f32();
    (scale, if stored > 0.0 { 1.0 / stored } else { 0.0 })
}

/// Adds a tile to the softmax of `ROWS` queries, which hold their vectors as [`pack_query`] writes them.
///
/// The result of a query depends on its own vector and on the tokens that it attends to, to the last bit: see
/// [`super::f32_tile::tile`].
///
/// # Safety
/// As for [`super::f32_tile::tile`]; the processor has VNNI.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
#[allow(clippy::needless_range_loop, reason = "indices into arrays of registers")]
pub(crate) unsafe fn tile<const PIECES: usize, const ROWS: usize>(queries: &mut [Query], tile: Tile) {
    let size = PIECES * LANES;
    let mut weights = [[_mm512_setzero_ps(); TILE_BLOCKS]; ROWS];
    for block in 0..tile.blocks() {
        // SAFETY: as the caller guarantees.
        unsafe { scores::<PIECES, ROWS>(queries, tile, block, &mut weights) };
    }
    let mut integers = [[[0u32; TILE_TOKENS / 4]; WEIGHT_PARTS]; ROWS];
    let mut shrinks = [_mm512_setzero_ps(); ROWS];
    let mut factors = [0f32; ROWS];
    for row in 0..ROWS {
        let visible = tile.visible(&queries[row]);
        shrinks[row] = weigh(&mut queries[row], &mut weights[row], visible);
        // SAFETY: as the caller guarantees.
        factors[row] = unsafe { round::<PIECES>(tile, visible, &mut weights[row], &mut integers[row]) };
    }
    let mut sums = [[[_mm512_setzero_si512(); PIECES]; WEIGHT_PARTS]; ROWS];
    // SAFETY: as the caller guarantees.
    unsafe {
        for group in 0..tile.count.div_ceil(GROUP_TOKENS) {
            let (block, at) = (group / GROUPS, group % GROUPS);
            let values = tile
                .block(block)
                .add(BlockElement::I8.values_offset(size) + at * GROUP_TOKENS * size);
            tile.prefetch(block, (GROUPS + at) * PIECES, PIECES);
            for piece in 0..PIECES {
                let part = _mm512_loadu_si512(values.add(piece * 64).cast());
                for row in 0..ROWS {
                    for byte in 0..WEIGHT_PARTS {
                        let weight = _mm512_set1_epi32(integers[row][byte][group].cast_signed());
                        sums[row][byte][piece] = _mm512_dpbusd_epi32(sums[row][byte][piece], weight, part);
                    }
                }
            }
        }
        for row in 0..ROWS {
            let factor = _mm512_set1_ps(factors[row]);
            for piece in 0..PIECES {
                let place = queries[row].sum.add(piece * LANES);
                let mut sum = _mm512_mul_ps(_mm512_loadu_ps(place), shrinks[row]);
                sum = _mm512_fmadd_ps(joined(sums[row].map(|part| part[piece])), factor, sum);
                _mm512_storeu_ps(place, sum);
            }
        }
    }
}

/// The sum of a weight's parts: the upper byte first.
#[target_feature(enable = "avx512f")]
#[inline]
fn joined(parts: [__m512i; WEIGHT_PARTS]) -> __m512 {
    let upper = _mm512_cvtepi32_ps(parts[0]);
    if WEIGHT_PARTS == 1 {
        return upper;
    }
    let lower = _mm512_cvtepi32_ps(parts[WEIGHT_PARTS - 1]);
    _mm512_fmadd_ps(upper, _mm512_set1_ps(256.0), lower)
}

/// Scores of a block's keys for each query: products of the vectors.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
#[allow(clippy::needless_range_loop, reason = "indices into arrays of registers")]
#[inline]
unsafe fn scores<const PIECES: usize, const ROWS: usize>(
    queries: &[Query],
    tile: Tile,
    block: usize,
    scores: &mut [TileScores; ROWS],
) {
    let size = PIECES * LANES;
    let keys = tile.block(block);
    // Two sums of each, so that an addition need not wait for the one before it. Sums of integers are exact.
    let mut sums = [[[_mm512_setzero_si512(); 2]; QUERY_PARTS]; ROWS];
    for at in (0..size / 4).step_by(2) {
        tile.prefetch(block, at, 2);
        for half in 0..2 {
            // SAFETY: as the caller guarantees.
            unsafe {
                let bytes = _mm512_loadu_si512(keys.add((at + half) * 64).cast());
                for row in 0..ROWS {
                    for part in 0..QUERY_PARTS {
                        let vector = queries[row].vector.add(QUERY_HEADER + part * size).cast::<i32>();
                        let value = _mm512_set1_epi32(vector.add(at + half).read_unaligned());
                        sums[row][part][half] = _mm512_dpbusd_epi32(sums[row][part][half], bytes, value);
                    }
                }
            }
        }
    }
    // SAFETY: as above: the scales of the keys lie behind the values.
    let scales = unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(keys.add(2 * BLOCK_TOKENS * size).cast())) };
    for row in 0..ROWS {
        // SAFETY: as above.
        let (scale, offsets) = unsafe {
            let header = queries[row].vector.cast::<i32>();
            (*queries[row].vector.cast::<f32>(), header.add(1))
        };
        let mut whole = _mm512_setzero_si512();
        for part in 0..QUERY_PARTS {
            // SAFETY: as above.
            let offset = unsafe { _mm512_set1_epi32(*offsets.add(part)) };
            let sum = _mm512_add_epi32(sums[row][part][0], sums[row][part][1]);
            let shifted = if part == 0 {
                whole
            } else {
                _mm512_slli_epi32::<LOWER_QUERY_BITS>(whole)
            };
            whole = _mm512_add_epi32(shifted, _mm512_add_epi32(sum, offset));
        }
        let scale = _mm512_mul_ps(scales, _mm512_set1_ps(scale));
        scores[row][block] = _mm512_mul_ps(_mm512_cvtepi32_ps(whole), scale);
    }
}

/// Rounds weights, times the scales of their values, to integers; returns the factor that undoes it.
///
/// # Safety
/// As for [`tile`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
#[inline]
#[allow(clippy::needless_range_loop, reason = "indices into arrays of registers")]
unsafe fn round<const PIECES: usize>(
    tile: Tile,
    visible: usize,
    weights: &mut TileScores,
    integers: &mut [[u32; TILE_TOKENS / 4]; WEIGHT_PARTS],
) -> f32 {
    let size = PIECES * LANES;
    let mut largest = _mm512_setzero_ps();
    for block in 0..tile.blocks() {
        // SAFETY: as the caller guarantees: the scales of the values are a block's last bytes.
        let scales = unsafe {
            let scales = tile.block(block).add(2 * BLOCK_TOKENS * (size + 1));
            _mm512_cvtph_ps(_mm256_loadu_si256(scales.cast()))
        };
        // Scales behind the tokens that count may be anything.
        weights[block] = _mm512_maskz_mul_ps(mask(visible, block), weights[block], scales);
        largest = _mm512_max_ps(largest, weights[block]);
    }
    let largest = _mm512_reduce_max_ps(largest);
    let factor = if largest > 0.0 {
        LARGEST_WEIGHT / largest
    } else {
        0.0
    };
    for block in 0..tile.blocks() {
        let whole = _mm512_cvtps_epi32(_mm512_mul_ps(weights[block], _mm512_set1_ps(factor)));
        let parts = [whole, _mm512_srli_epi32::<8>(whole)];
        for part in 0..WEIGHT_PARTS {
            let bytes = _mm512_cvtepi32_epi8(parts[WEIGHT_PARTS - 1 - part]);
            // SAFETY: it has room for the bytes of all tokens of a tile.
            unsafe {
                let to = integers[part].as_mut_ptr().cast::<u8>().add(block * BLOCK_TOKENS);
                _mm_storeu_si128(to.cast(), bytes);
            }
        }
    }
    largest / LARGEST_WEIGHT
}
