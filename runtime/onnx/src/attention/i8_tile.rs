//! Attention over one tile of keys and values of 8 bits: products of bytes, or of integers of 16 bits.
//!
//! Queries are rounded to integers of 15 bits, and a tile's weights (times the scales of the values) to such of 16 bits, with
//! one scale: in the form of [`ByteProducts`], two bytes each, the upper and the lower one, or as they are. What that loses is
//! nothing beside the rounding of the keys.

#![allow(
    clippy::cast_ptr_alignment,
    reason = "blocks and packed queries begin at multiples of 64 bytes, and so do their parts at multiples of 4"
)]

use super::layout::{BLOCK_TOKENS, BlockElement, KEY_OFFSET, MAX_SIZE, TILE_BLOCKS, TILE_TOKENS, key_part};
use super::softmax::{KvTile, Query, TileScores, weigh};
use super::vectors::{ByteProducts, FloatsOf, Vector};

/// Tokens whose values are multiplied by one instruction.
const GROUP_TOKENS: usize = 4;
const GROUPS: usize = BLOCK_TOKENS / GROUP_TOKENS;
/// The largest integer of a key or a value.
const LARGEST: f32 = 127.0;
/// The bits of the lower byte of a query's value, which is signed: it lies between -64 and 63.
pub(super) const LOWER_QUERY_BITS: u32 = 7;
pub(super) const LOWER_QUERY_HALF: i32 = 1 << (LOWER_QUERY_BITS - 1);
const LARGEST_QUERY: f32 = LARGEST * 128.0;
const LARGEST_WEIGHT: f32 = 65_535.0;
/// What a packed query begins with: its scale, then for each part of the vector what the offset of the keys adds to the sum.
const QUERY_HEADER: usize = 64;

/// The bytes of a packed query.
pub(crate) const fn query_bytes(size: usize) -> usize {
    QUERY_HEADER + (2 * size).next_multiple_of(64)
}

/// Packs a query vector, rotated, scaled and transformed.
///
/// # Safety
/// The processor has the instruction set. `to` has room for [`query_bytes`], at an address that 4 divides.
#[inline(always)]
pub(crate) unsafe fn pack_query<B: ByteProducts>(vector: &[f32], to: *mut u8) {
    let size = vector.len();
    let mut integers = [0i32; MAX_SIZE];
    // SAFETY: as the caller guarantees; 16 divides the size and its parts.
    unsafe {
        let largest = largest::<B::Lanes>(vector);
        let (scale, factor) = if largest > 0.0 {
            (largest / LARGEST_QUERY, LARGEST_QUERY / largest)
        } else {
            (0.0, 0.0)
        };
        *to.cast::<f32>() = scale;
        round_to::<B::Lanes>(vector, factor, LARGEST_QUERY, &mut integers);
        let integers = &integers[..size];
        for (part, integers) in integers.chunks_exact(key_part(size)).enumerate() {
            *to.cast::<i32>().add(1 + part) = -B::KEY_OFFSET
                * integers
                    .iter()
                    .fold(0i32, |sum, integer| sum.wrapping_add(*integer));
        }
        for (piece, integers) in integers.as_chunks::<BLOCK_TOKENS>().0.iter().enumerate() {
            let place = to.add(QUERY_HEADER + piece * BLOCK_TOKENS);
            let [first, second] = B::query_words(integers);
            place.cast::<[u8; BLOCK_TOKENS]>().write(first);
            place.add(size).cast::<[u8; BLOCK_TOKENS]>().write(second);
        }
    }
}

/// Writes a token's key and value to a head's part of a block.
///
/// # Safety
/// The processor has the instruction set. `head` points to the part of a head of the size of `key` and `value`; no other code
/// uses the token, nor its neighbours in the block, meanwhile.
#[inline(always)]
pub(crate) unsafe fn store<V: Vector>(head: *mut u8, token: usize, key: &[f32], value: &[f32]) {
    let size = key.len();
    let part = key_part(size);
    let mut integers = [0i32; MAX_SIZE];
    // SAFETY: as the caller guarantees; 16 divides the size and its parts.
    unsafe {
        let scales = head.add(2 * BLOCK_TOKENS * size).cast::<u16>().add(token);
        for (index, values) in key.chunks_exact(part).enumerate() {
            let (scale, factor) = scale::<V>(values);
            *scales.add(index * BLOCK_TOKENS) = scale.to_bits();
            round_to::<V>(values, factor, LARGEST, &mut integers[index * part..]);
        }
        for (line, four) in integers[..size].as_chunks::<4>().0.iter().enumerate() {
            let mut bytes = [0; 4];
            for (byte, integer) in bytes.iter_mut().zip(four) {
                *byte = low_byte(integer.wrapping_add(KEY_OFFSET));
            }
            head.add((line * BLOCK_TOKENS + token) * 4)
                .cast::<[u8; 4]>()
                .write(bytes);
        }
        let (scale, factor) = scale::<V>(value);
        *scales.add(size / part * BLOCK_TOKENS) = scale.to_bits();
        round_to::<V>(value, factor, LARGEST, &mut integers);
        let group =
            head.add(BlockElement::I8.values_offset(size) + token / GROUP_TOKENS * size * GROUP_TOKENS);
        let words = std::slice::from_raw_parts_mut(group.cast::<u32>(), size);
        // The token's byte of each group of four; those of its neighbours stay.
        let shift = 8 * (token % GROUP_TOKENS);
        for (word, integer) in words.iter_mut().zip(&integers) {
            *word = *word & !(0xff << shift) | u32::from(low_byte(*integer)) << shift;
        }
    }
}

#[inline(always)]
#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "the bits of a byte"
)]
fn low_byte(integer: i32) -> u8 {
    integer as u8
}

/// Rounds values times `factor` to integers, from -`most` to `most`.
///
/// # Safety
/// The processor has the instruction set; 16 divides the number of values, for which `integers` has room.
#[inline(always)]
unsafe fn round_to<V: Vector>(values: &[f32], factor: f32, most: f32, integers: &mut [i32]) {
    debug_assert!(integers.len() >= values.len());
    for at in (0..values.len()).step_by(V::LANES) {
        // SAFETY: as the caller guarantees.
        unsafe {
            let values = V::mul(V::load(values.as_ptr().add(at)), V::set(factor));
            let bounded = V::min(V::max(values, V::set(-most)), V::set(most));
            V::store_ints(integers.as_mut_ptr().add(at), V::to_ints(bounded));
        }
    }
}

/// The largest absolute value of a vector.
///
/// # Safety
/// The processor has the instruction set; 16 divides the number of values.
#[inline(always)]
unsafe fn largest<V: Vector>(vector: &[f32]) -> f32 {
    // SAFETY: as the caller guarantees.
    unsafe {
        let zero = V::set(0.0);
        let mut largest = zero;
        for at in (0..vector.len()).step_by(V::LANES) {
            let values = V::load(vector.as_ptr().add(at));
            largest = V::max(largest, V::max(values, V::sub(zero, values)));
        }
        V::largest(largest)
    }
}

/// The scale of a vector's integers as it is stored, and the factor that gives them.
///
/// # Safety
/// As for [`largest`].
#[inline(always)]
unsafe fn scale<V: Vector>(vector: &[f32]) -> (half::f16, f32) {
    // SAFETY: as the caller guarantees.
    let largest = unsafe { largest::<V>(vector) };
    let scale = half::f16::from_f32((largest / LARGEST).min(65_504.0));
    let stored = scale.to_f32();
    (scale, if stored > 0.0 { 1.0 / stored } else { 0.0 })
}

/// The weights of a tile's tokens for each query: words of integers, what undoes the rounding, and the factors of its sum so
/// far.
struct WeightIntegers<const ROWS: usize> {
    words: [[[u32; TILE_TOKENS / GROUP_TOKENS]; 2]; ROWS],
    factors: [f32; ROWS],
    shrinks: [f32; ROWS],
}

/// Adds a tile to the softmax of `ROWS` queries, which hold their vectors as [`pack_query`] writes them.
///
/// The result of a query depends on its own vector and on the tokens that it attends to, to the last bit: see
/// [`super::f32_tile::tile`].
///
/// # Safety
/// As for [`super::f32_tile::tile`].
#[inline(always)]
pub(crate) unsafe fn tile<B: ByteProducts, const PIECES: usize, const ROWS: usize>(
    queries: &mut [Query],
    tile: KvTile,
) {
    let size = PIECES * BLOCK_TOKENS;
    let lanes = B::Lanes::LANES;
    let mut weights = [TileScores::ZERO; ROWS];
    let mut integers = WeightIntegers {
        words: [[[0; TILE_TOKENS / GROUP_TOKENS]; 2]; ROWS],
        factors: [0.0; ROWS],
        shrinks: [1.0; ROWS],
    };
    // SAFETY: as the caller guarantees.
    unsafe {
        for block in 0..tile.blocks() {
            for lane in (0..BLOCK_TOKENS).step_by(lanes) {
                scores::<B, PIECES, ROWS>(queries, tile, (block, lane), &mut weights);
            }
        }
        for row in 0..ROWS {
            let visible = tile.visible(&queries[row]);
            integers.shrinks[row] = weigh::<B::Lanes>(&mut queries[row], &mut weights[row], visible);
            let words = &mut integers.words[row];
            integers.factors[row] = round::<B, PIECES>(tile, visible, &mut weights[row], words);
        }
        // As many registers of a vector at a time as there is room for.
        let mut from = 0;
        while from < size {
            let registers = (size - from) / lanes;
            if lanes == BLOCK_TOKENS && registers >= 3 {
                add_values::<B, PIECES, 3, ROWS>(queries, tile, from, &integers);
                from += 3 * lanes;
            } else if lanes == BLOCK_TOKENS {
                add_values::<B, PIECES, 1, ROWS>(queries, tile, from, &integers);
                from += lanes;
            } else {
                add_values::<B, PIECES, 2, ROWS>(queries, tile, from, &integers);
                from += 2 * lanes;
            }
        }
    }
}

/// Adds the values of a tile to `PART` registers of the sums of each query, from value `from` on.
///
/// # Safety
/// As for [`tile`].
#[inline(always)]
#[allow(clippy::needless_range_loop, reason = "indices into arrays of registers")]
unsafe fn add_values<B: ByteProducts, const PIECES: usize, const PART: usize, const ROWS: usize>(
    queries: &[Query],
    tile: KvTile,
    from: usize,
    integers: &WeightIntegers<ROWS>,
) {
    let size = PIECES * BLOCK_TOKENS;
    let lanes = B::Lanes::LANES;
    // SAFETY: as the caller guarantees.
    unsafe {
        let zero = B::Lanes::set_ints(0);
        let mut plain = [zero; PART];
        let mut sums = [[[zero; 2]; PART]; ROWS];
        for group in 0..tile.count.div_ceil(GROUP_TOKENS) {
            let (block, at) = (group / GROUPS, group % GROUPS);
            let values = tile
                .block(block)
                .add(BlockElement::I8.values_offset(size) + (at * size + from) * GROUP_TOKENS);
            let ahead = (PART * lanes).div_ceil(BLOCK_TOKENS);
            tile.prefetch(block, (GROUPS + at) * PIECES + from / BLOCK_TOKENS, ahead);
            let mut bytes = [zero; PART];
            for part in 0..PART {
                bytes[part] = B::Lanes::load_ints(values.add(part * lanes * GROUP_TOKENS));
                plain[part] = B::add_plain_values(plain[part], bytes[part]);
            }
            for row in 0..ROWS {
                let [first, second] = &integers.words[row];
                let weights = [first[group], second[group]].map(u32::cast_signed);
                let weights = [B::Lanes::set_ints(weights[0]), B::Lanes::set_ints(weights[1])];
                for part in 0..PART {
                    B::add_values(&mut sums[row][part], bytes[part], weights);
                }
            }
        }
        for row in 0..ROWS {
            let factor = B::Lanes::set(integers.factors[row]);
            let shrink = B::Lanes::set(integers.shrinks[row]);
            for part in 0..PART {
                let place = queries[row].sum.add(from + part * lanes);
                let total = B::value_total(sums[row][part], plain[part]);
                let sum = B::Lanes::mul(B::Lanes::load(place), shrink);
                B::Lanes::store(place, B::Lanes::mul_add(total, factor, sum));
            }
        }
    }
}

/// Scores of a register's keys, from `lane` of `block` on, for each query: products of the vectors, part by part.
///
/// # Safety
/// As for [`tile`].
#[inline(always)]
#[allow(clippy::needless_range_loop, reason = "indices into arrays of registers")]
unsafe fn scores<B: ByteProducts, const PIECES: usize, const ROWS: usize>(
    queries: &[Query],
    tile: KvTile,
    (block, lane): (usize, usize),
    scores: &mut [TileScores; ROWS],
) {
    let size = PIECES * BLOCK_TOKENS;
    let part = key_part(size);
    let keys = tile.block(block);
    // SAFETY: as the caller guarantees; the scales lie behind keys and values.
    unsafe {
        let mut totals = [B::Lanes::set(0.0); ROWS];
        for index in 0..size / part {
            let mut sums = [[B::Lanes::set_ints(0); 2]; ROWS];
            for at in index * part / 4..(index + 1) * part / 4 {
                if lane == 0 {
                    tile.prefetch(block, at, 1);
                }
                let bytes = B::Lanes::load_ints(keys.add((at * BLOCK_TOKENS + lane) * 4));
                for row in 0..ROWS {
                    let vector = queries[row].vector.add(QUERY_HEADER).cast::<i32>();
                    let query = [
                        B::Lanes::set_ints(*vector.add(at)),
                        B::Lanes::set_ints(*vector.add(size / 4 + at)),
                    ];
                    B::add_keys(&mut sums[row], bytes, query);
                }
            }
            let scales = scales::<B>(keys, size, index, lane);
            for row in 0..ROWS {
                let offset = *queries[row].vector.cast::<i32>().add(1 + index);
                let whole = B::Lanes::add_ints(B::key_total(sums[row]), B::Lanes::set_ints(offset));
                totals[row] = B::Lanes::mul_add(B::Lanes::to_floats(whole), scales, totals[row]);
            }
        }
        for row in 0..ROWS {
            let scale = B::Lanes::set(*queries[row].vector.cast::<f32>());
            let to = scores[row].0.as_mut_ptr().add(block * BLOCK_TOKENS + lane);
            B::Lanes::store(to, B::Lanes::mul(totals[row], scale));
        }
    }
}

/// Scales of a register's tokens: line `index` of those behind keys and values.
///
/// # Safety
/// As for [`tile`].
#[inline(always)]
unsafe fn scales<B: ByteProducts>(head: *const u8, size: usize, index: usize, lane: usize) -> FloatsOf<B> {
    // SAFETY: as the caller guarantees.
    unsafe {
        let scales = head.add(2 * BLOCK_TOKENS * (size + index)).cast::<u16>();
        B::Lanes::load_f16(scales.add(lane))
    }
}

/// Rounds weights, times the scales of their values, to integers; returns the factor that undoes it.
///
/// # Safety
/// As for [`tile`].
#[inline(always)]
unsafe fn round<B: ByteProducts, const PIECES: usize>(
    tile: KvTile,
    visible: usize,
    weights: &mut TileScores,
    words: &mut [[u32; TILE_TOKENS / GROUP_TOKENS]; 2],
) -> f32 {
    let size = PIECES * BLOCK_TOKENS;
    let tokens = tile.blocks() * BLOCK_TOKENS;
    let mut integers = [0i32; TILE_TOKENS];
    // SAFETY: as the caller guarantees: the scales of the values are a block's last ones.
    unsafe {
        let weights = weights.0.as_mut_ptr();
        let zero = B::Lanes::set(0.0);
        let mut largest = zero;
        for at in (0..tokens).step_by(B::Lanes::LANES) {
            let (block, lane) = (at / BLOCK_TOKENS, at % BLOCK_TOKENS);
            let scales = scales::<B>(tile.block(block), size, size / key_part(size), lane);
            let weight = B::Lanes::mul(B::Lanes::load(weights.add(at)), scales);
            // Scales behind the tokens that count may be anything.
            let weight = B::Lanes::first(visible.saturating_sub(at), weight, zero);
            B::Lanes::store(weights.add(at), weight);
            largest = B::Lanes::max(largest, weight);
        }
        let largest = B::Lanes::largest(largest);
        let factor = if largest > 0.0 {
            LARGEST_WEIGHT / largest
        } else {
            0.0
        };
        for at in (0..tokens).step_by(B::Lanes::LANES) {
            let weight = B::Lanes::mul(B::Lanes::load(weights.add(at)), B::Lanes::set(factor));
            B::Lanes::store_ints(integers.as_mut_ptr().add(at), B::Lanes::to_ints(weight));
        }
        let blocks = integers.as_chunks::<BLOCK_TOKENS>().0;
        for (block, integers) in blocks.iter().enumerate().take(TILE_BLOCKS) {
            for (to, line) in words.iter_mut().zip(B::weight_words(integers)) {
                let to = to.as_mut_ptr().add(block * GROUPS);
                to.cast::<[u8; BLOCK_TOKENS]>().write(line);
            }
        }
        largest / LARGEST_WEIGHT
    }
}
