//! Attention over one tile of keys and values of 8 bits: dot products of bytes with VNNI.
//!
//! Queries are rounded to integers of 15 bits, and a tile's weights (times the scales of the values) to such of 16 bits: two
//! bytes each, the upper and the lower one, with one scale. What that loses is nothing beside the rounding of the keys.

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
use super::layout::{BLOCK_TOKENS, BlockElement, TILE_BLOCKS, TILE_TOKENS, key_part};
use super::softmax::{KvTile, Query, TileScores, mask, weigh};

/// Tokens whose values are multiplied by one instruction.
const GROUP_TOKENS: usize = 4;
const GROUPS: usize = BLOCK_TOKENS / GROUP_TOKENS;
/// Keys are stored with this offset, for one factor of a dot product is unsigned.
const KEY_OFFSET: i32 = 128;
/// The largest integer of a key or a value.
const LARGEST: f32 = 127.0;
/// The bits of the lower byte of a query's value, which is signed: it lies between -64 and 63.
const LOWER_QUERY_BITS: u32 = 7;
const LARGEST_QUERY: f32 = LARGEST * 128.0;
const LARGEST_WEIGHT: f32 = 65_535.0;
/// Pieces of the sums that are added at once: with four queries of two sums each, they fill the registers.
const PIECES_AT_ONCE: usize = 3;
/// What a packed query begins with: its scale, then for each part of the vector what the offset of the keys adds to the sum.
const QUERY_HEADER: usize = 64;

/// The bytes of a packed query.
pub(crate) const fn query_bytes(size: usize) -> usize {
    QUERY_HEADER + (2 * size).next_multiple_of(64)
}

/// Packs a query vector, rotated, scaled and transformed.
///
/// # Safety
/// `to` has room for [`query_bytes`], at an address that 4 divides.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
pub(crate) unsafe fn pack_query(vector: &[f32], to: *mut u8) {
    let size = vector.len();
    let largest = largest(vector);
    let (scale, factor) = if largest > 0.0 {
        (largest / LARGEST_QUERY, LARGEST_QUERY / largest)
    } else {
        (0.0, 0.0)
    };
    let part = key_part(size);
    // SAFETY: as the caller guarantees; 16 divides the size and its parts.
    unsafe {
        *to.cast::<f32>() = scale;
        for from in (0..size).step_by(part) {
            let mut sum = _mm512_setzero_si512();
            for at in (from..from + part).step_by(LANES) {
                let whole = integers(vector.as_ptr().add(at), factor, LARGEST_QUERY);
                let half = _mm512_set1_epi32(1 << (LOWER_QUERY_BITS - 1));
                let upper = _mm512_srai_epi32::<LOWER_QUERY_BITS>(_mm512_add_epi32(whole, half));
                let lower = _mm512_sub_epi32(whole, _mm512_slli_epi32::<LOWER_QUERY_BITS>(upper));
                let place = to.add(QUERY_HEADER + at);
                _mm_storeu_si128(place.cast(), _mm512_cvtepi32_epi8(upper));
                _mm_storeu_si128(place.add(size).cast(), _mm512_cvtepi32_epi8(lower));
                sum = _mm512_add_epi32(sum, whole);
            }
            *to.cast::<i32>().add(1 + from / part) = -KEY_OFFSET * _mm512_reduce_add_epi32(sum);
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
    let part = key_part(size);
    let (value_scale, value_factor) = scale(value);
    let values = head.wrapping_add(BlockElement::I8.values_offset(size));
    let group = values.wrapping_add(token / GROUP_TOKENS * size * GROUP_TOKENS);
    let place = token % GROUP_TOKENS;
    let shift = _mm_cvtsi32_si128(i32::try_from(8 * place).unwrap_or(0));
    // SAFETY: as the caller guarantees; 16 divides the size and its parts.
    unsafe {
        let scales = head.add(2 * BLOCK_TOKENS * size).cast::<u16>().add(token);
        for (index, values) in key.chunks_exact(part).enumerate() {
            let (scale, factor) = scale(values);
            *scales.add(index * BLOCK_TOKENS) = scale.to_bits();
            for at in (0..part).step_by(LANES) {
                let whole = integers(values.as_ptr().add(at), factor, LARGEST);
                let mut bytes = [0u32; 4];
                let offset = _mm512_add_epi32(whole, _mm512_set1_epi32(KEY_OFFSET));
                _mm_storeu_si128(bytes.as_mut_ptr().cast(), _mm512_cvtepi32_epi8(offset));
                let line = (index * part + at) / 4;
                for (index, four) in bytes.into_iter().enumerate() {
                    let line = head.add((line + index) * BLOCK_TOKENS * 4).cast::<u32>();
                    *line.add(token) = four;
                }
            }
        }
        *scales.add(size / part * BLOCK_TOKENS) = value_scale.to_bits();
        for at in (0..size).step_by(LANES) {
            // The token's byte of each group of four; those of its neighbours stay.
            let whole = _mm512_sll_epi32(integers(value.as_ptr().add(at), value_factor, LARGEST), shift);
            let line = group.add(at * GROUP_TOKENS);
            let old = _mm512_loadu_si512(line.cast());
            let merged = _mm512_mask_mov_epi8(old, 0x1111_1111_1111_1111 << place, whole);
            _mm512_storeu_si512(line.cast(), merged);
        }
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
pub(crate) unsafe fn tile<const PIECES: usize, const ROWS: usize>(queries: &mut [Query], tile: KvTile) {
    let mut weights = [[_mm512_setzero_ps(); TILE_BLOCKS]; ROWS];
    for block in 0..tile.blocks() {
        // SAFETY: as the caller guarantees.
        unsafe { scores::<PIECES, ROWS>(queries, tile, block, &mut weights) };
    }
    // Upper bytes, then lower ones.
    let mut integers = [[[0u32; TILE_TOKENS / GROUP_TOKENS]; 2]; ROWS];
    let mut shrinks = [_mm512_setzero_ps(); ROWS];
    let mut factors = [0f32; ROWS];
    for row in 0..ROWS {
        let visible = tile.visible(&queries[row]);
        shrinks[row] = weigh(&mut queries[row], &mut weights[row], visible);
        // SAFETY: as the caller guarantees.
        factors[row] = unsafe { round::<PIECES>(tile, visible, &mut weights[row], &mut integers[row]) };
    }
    // SAFETY: as the caller guarantees.
    unsafe {
        let mut from = 0;
        // As many pieces at a time as have room in the registers.
        while from < PIECES {
            let to = PIECES.min(from + PIECES_AT_ONCE);
            if to - from == PIECES_AT_ONCE {
                add_values::<PIECES, PIECES_AT_ONCE, ROWS>(
                    queries, tile, from, &integers, &shrinks, &factors,
                );
            } else {
                for piece in from..to {
                    add_values::<PIECES, 1, ROWS>(queries, tile, piece, &integers, &shrinks, &factors);
                }
            }
            from = to;
        }
    }
}

/// Adds the values of a tile to `PART` pieces of the sums of each query, from `from` on.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
#[allow(clippy::needless_range_loop, reason = "indices into arrays of registers")]
#[inline]
unsafe fn add_values<const PIECES: usize, const PART: usize, const ROWS: usize>(
    queries: &[Query],
    tile: KvTile,
    from: usize,
    integers: &[[[u32; TILE_TOKENS / GROUP_TOKENS]; 2]; ROWS],
    shrinks: &[__m512; ROWS],
    factors: &[f32; ROWS],
) {
    let size = PIECES * LANES;
    let mut sums = [[[_mm512_setzero_si512(); PART]; 2]; ROWS];
    // SAFETY: as the caller of `tile` guarantees.
    unsafe {
        for group in 0..tile.count.div_ceil(GROUP_TOKENS) {
            let (block, at) = (group / GROUPS, group % GROUPS);
            let values = tile
                .block(block)
                .add(BlockElement::I8.values_offset(size) + at * GROUP_TOKENS * size + from * 64);
            tile.prefetch(block, (GROUPS + at) * PIECES + from, PART);
            let mut parts = [_mm512_setzero_si512(); PART];
            for piece in 0..PART {
                parts[piece] = _mm512_loadu_si512(values.add(piece * 64).cast());
            }
            for row in 0..ROWS {
                for byte in 0..2 {
                    let weight = _mm512_set1_epi32(integers[row][byte][group].cast_signed());
                    for piece in 0..PART {
                        let sum = &mut sums[row][byte][piece];
                        *sum = _mm512_dpbusd_epi32(*sum, weight, parts[piece]);
                    }
                }
            }
        }
        for row in 0..ROWS {
            let factor = _mm512_set1_ps(factors[row]);
            for piece in 0..PART {
                let place = queries[row].sum.add((from + piece) * LANES);
                let [upper, lower] =
                    [sums[row][0][piece], sums[row][1][piece]].map(|sum| _mm512_cvtepi32_ps(sum));
                let total = _mm512_fmadd_ps(upper, _mm512_set1_ps(256.0), lower);
                let sum = _mm512_mul_ps(_mm512_loadu_ps(place), shrinks[row]);
                _mm512_storeu_ps(place, _mm512_fmadd_ps(total, factor, sum));
            }
        }
    }
}

/// Scores of a block's keys for each query: products of the vectors, part by part.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
#[allow(clippy::needless_range_loop, reason = "indices into arrays of registers")]
#[inline]
unsafe fn scores<const PIECES: usize, const ROWS: usize>(
    queries: &[Query],
    tile: KvTile,
    block: usize,
    scores: &mut [TileScores; ROWS],
) {
    let size = PIECES * LANES;
    let part = key_part(size);
    let keys = tile.block(block);
    let mut totals = [_mm512_setzero_ps(); ROWS];
    for index in 0..size / part {
        let mut sums = [[_mm512_setzero_si512(); 2]; ROWS];
        // SAFETY: as the caller of `tile` guarantees; the scales lie behind keys and values.
        let scales = unsafe {
            for at in index * part / 4..(index + 1) * part / 4 {
                tile.prefetch(block, at, 1);
                let bytes = _mm512_loadu_si512(keys.add(at * 64).cast());
                for row in 0..ROWS {
                    let vector = queries[row].vector.add(QUERY_HEADER).cast::<i32>();
                    for byte in 0..2 {
                        let value = _mm512_set1_epi32(*vector.add(byte * size / 4 + at));
                        sums[row][byte] = _mm512_dpbusd_epi32(sums[row][byte], bytes, value);
                    }
                }
            }
            let scales = keys.add(2 * BLOCK_TOKENS * (size + index));
            _mm512_cvtph_ps(_mm256_loadu_si256(scales.cast()))
        };
        for row in 0..ROWS {
            // SAFETY: as above.
            let offset = unsafe { *queries[row].vector.cast::<i32>().add(1 + index) };
            let [upper, lower] = sums[row];
            let whole = _mm512_add_epi32(_mm512_slli_epi32::<LOWER_QUERY_BITS>(upper), lower);
            let whole = _mm512_add_epi32(whole, _mm512_set1_epi32(offset));
            totals[row] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(whole), scales, totals[row]);
        }
    }
    for row in 0..ROWS {
        // SAFETY: as above.
        let scale = unsafe { *queries[row].vector.cast::<f32>() };
        scores[row][block] = _mm512_mul_ps(totals[row], _mm512_set1_ps(scale));
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
    tile: KvTile,
    visible: usize,
    weights: &mut TileScores,
    integers: &mut [[u32; TILE_TOKENS / GROUP_TOKENS]; 2],
) -> f32 {
    let size = PIECES * LANES;
    let mut largest = _mm512_setzero_ps();
    for block in 0..tile.blocks() {
        // SAFETY: as the caller guarantees: the scales of the values are a block's last bytes.
        let scales = unsafe {
            let scales = tile
                .block(block)
                .add(2 * BLOCK_TOKENS * (size + size / key_part(size)));
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
        for (byte, value) in [_mm512_srli_epi32::<8>(whole), whole].into_iter().enumerate() {
            // SAFETY: it has room for the bytes of all tokens of a tile.
            unsafe {
                let to = integers[byte].as_mut_ptr().cast::<u8>().add(block * BLOCK_TOKENS);
                _mm_storeu_si128(to.cast(), _mm512_cvtepi32_epi8(value));
            }
        }
    }
    largest / LARGEST_WEIGHT
}
