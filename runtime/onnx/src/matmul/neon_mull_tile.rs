//! Products of bytes with NEON alone: products are added in 16 bits, then pairwise in 32.

use std::arch::aarch64::{
    int8x16_t, int16x8_t, vaddq_s32, vandq_s8, vdupq_n_s8, vdupq_n_s16, vdupq_n_u8, veorq_s8, vget_low_s8,
    vld1q_dup_s32, vld1q_s8, vmlal_high_s8, vmlal_s8, vpaddlq_s16, vpaddq_s32, vreinterpretq_s8_s32,
    vreinterpretq_s8_u8, vreinterpretq_u8_s8, vshrq_n_u8,
};

use super::neon_tile::{NeonProducts, QUARTERS, QuarterSums, compute};
use crate::matmul::group_words::GroupWords;
use crate::matmul::operands::Tile;

tile_entry!(tile, compute_mull, "NEON.");

#[inline(never)]
unsafe fn compute_mull<const ROWS: usize, const GROUPS: usize, const LINES: usize>(tile: &Tile) {
    // SAFETY: as the caller guarantees.
    unsafe { compute::<WideningProducts, ROWS, GROUPS, LINES>(tile) };
}

/// `smlal`: products of signed bytes in 16 bits.
enum WideningProducts {}

/// The most words of four-bit weights whose products are added in 16 bits: sixteen products in each lane,
/// 16 * 15 * 127 = 30,480.
const NIBBLE_WORDS: usize = 8;
/// The same of eight-bit weights: two products, 2 * 128 * 127 = 32,512.
const BYTE_WORDS: usize = 1;
/// Registers of columns that share the loads of the rows' values.
const PART: usize = 2;

impl NeonProducts for WideningProducts {
    #[inline(always)]
    unsafe fn add<const ROWS: usize, const LINES: usize>(words: &GroupWords, sums: &mut QuarterSums<ROWS>) {
        let most = if LINES == 1 { NIBBLE_WORDS } else { BYTE_WORDS };
        for from in (0..words.count).step_by(most) {
            let to = (from + most).min(words.count);
            for quarter in (0..QUARTERS).step_by(PART) {
                // SAFETY: as the caller guarantees.
                unsafe { add_words::<ROWS, LINES>(words, from..to, quarter, sums) };
            }
        }
    }
}

/// Adds the products of some words for two registers of columns, which fit 16 bits.
///
/// # Safety
/// As for [`NeonProducts::add`].
#[inline(always)]
#[allow(clippy::needless_range_loop, reason = "indices into arrays of registers")]
unsafe fn add_words<const ROWS: usize, const LINES: usize>(
    words: &GroupWords,
    range: std::ops::Range<usize>,
    quarter: usize,
    sums: &mut QuarterSums<ROWS>,
) {
    // SAFETY: as the caller guarantees; a line has four registers.
    unsafe {
        let mut products = [[[vdupq_n_s16(0); 2]; PART]; ROWS];
        for word in range {
            for line in 0..LINES {
                if quarter == 0 {
                    words.prefetch(word * LINES + line);
                }
            }
            let weights: [[int8x16_t; 2]; PART] =
                std::array::from_fn(|part| halves::<LINES>(words, word, quarter + part));
            for half in 0..2 {
                for row in 0..ROWS {
                    let values = words.quants.add((2 * word + half) * ROWS + row);
                    let values = vreinterpretq_s8_s32(vld1q_dup_s32(values));
                    for part in 0..PART {
                        multiply(&mut products[row][part], weights[part][half], values);
                    }
                }
            }
        }
        for row in 0..ROWS {
            for part in 0..PART {
                let [low, high] = products[row][part].map(|products| vpaddlq_s16(products));
                let sum = &mut sums[row][quarter + part];
                *sum = vaddq_s32(*sum, vpaddq_s32(low, high));
            }
        }
    }
}

/// The even weights of a word and the odd ones, of four columns.
///
/// # Safety
/// As for [`NeonProducts::add`].
#[inline(always)]
unsafe fn halves<const LINES: usize>(words: &GroupWords, word: usize, quarter: usize) -> [int8x16_t; 2] {
    // SAFETY: as the caller guarantees.
    unsafe {
        let load = |line: usize| vld1q_s8(words.line(line).cast::<i8>().add(16 * quarter));
        if LINES == 1 {
            let bytes = load(word);
            let high = vshrq_n_u8::<4>(vreinterpretq_u8_s8(bytes));
            [vandq_s8(bytes, vdupq_n_s8(15)), vreinterpretq_s8_u8(high)]
        } else {
            let sign = vreinterpretq_s8_u8(vdupq_n_u8(0x80));
            [veorq_s8(load(2 * word), sign), veorq_s8(load(2 * word + 1), sign)]
        }
    }
}

/// Adds the products of sixteen bytes to two registers of 16-bit lanes.
#[inline(always)]
fn multiply(products: &mut [int16x8_t; 2], weights: int8x16_t, values: int8x16_t) {
    // SAFETY: NEON is part of the architecture.
    unsafe {
        products[0] = vmlal_s8(products[0], vget_low_s8(weights), vget_low_s8(values));
        products[1] = vmlal_high_s8(products[1], weights, values);
    }
}
