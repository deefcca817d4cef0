//! Products of bytes with NEON's dot product: `sdot` by lane, whose intrinsic is not stable.

use std::arch::aarch64::{
    int8x16_t, int32x4_t, vandq_s8, vcombine_s32, vdup_n_s32, vdupq_n_s8, vdupq_n_s32, vdupq_n_u8, veorq_s8,
    vld1_s32, vld1q_dup_s32, vld1q_lane_s32, vld1q_s8, vld1q_s32, vreinterpretq_s8_u8, vreinterpretq_u8_s8,
    vshrq_n_u8,
};

use super::neon_tile::{NeonProducts, QUARTERS, QuarterSums, compute};
use crate::matmul::group_words::GroupWords;
use crate::matmul::operands::Tile;

tile_entry!(tile, compute_dot, "the dot product.");

#[target_feature(enable = "dotprod")]
unsafe fn compute_dot<const ROWS: usize, const GROUPS: usize, const LINES: usize>(tile: &Tile) {
    // SAFETY: as the caller guarantees.
    unsafe { compute::<LaneProducts, ROWS, GROUPS, LINES>(tile) };
}

enum LaneProducts {}

impl NeonProducts for LaneProducts {
    #[inline(always)]
    unsafe fn add<const ROWS: usize, const LINES: usize>(words: &GroupWords, sums: &mut QuarterSums<ROWS>) {
        // SAFETY: as the caller guarantees; a line has four registers.
        unsafe {
            let low = vdupq_n_s8(15);
            let sign = vreinterpretq_s8_u8(vdupq_n_u8(0x80));
            let mut quants = words.quants;
            for word in 0..words.count {
                let even = panel_words::<ROWS>(quants);
                let odd = panel_words::<ROWS>(quants.add(ROWS));
                quants = quants.add(2 * ROWS);
                for line in 0..LINES {
                    words.prefetch(word * LINES + line);
                }
                for quarter in 0..QUARTERS {
                    let load = |line: usize| vld1q_s8(words.line(line).cast::<i8>().add(16 * quarter));
                    if LINES == 1 {
                        let bytes = load(word);
                        dots(sums, quarter, vandq_s8(bytes, low), even);
                        let high = vshrq_n_u8::<4>(vreinterpretq_u8_s8(bytes));
                        dots(sums, quarter, vreinterpretq_s8_u8(high), odd);
                    } else {
                        dots(sums, quarter, veorq_s8(load(2 * word), sign), even);
                        dots(sums, quarter, veorq_s8(load(2 * word + 1), sign), odd);
                    }
                }
            }
        }
    }
}

/// Four bytes of each row of a panel: four rows a register.
///
/// # Safety
/// There are as many words as rows.
#[inline(always)]
unsafe fn panel_words<const ROWS: usize>(quants: *const i32) -> [int32x4_t; 2] {
    // SAFETY: as the caller guarantees.
    unsafe {
        let first = some_words(quants, ROWS);
        let second = if ROWS > 4 {
            some_words(quants.add(4), ROWS - 4)
        } else {
            vdupq_n_s32(0)
        };
        [first, second]
    }
}

/// Up to four words; what is left of the register may be anything.
///
/// # Safety
/// There are as many.
#[inline(always)]
unsafe fn some_words(from: *const i32, count: usize) -> int32x4_t {
    // SAFETY: as the caller guarantees.
    unsafe {
        match count {
            1 => vld1q_dup_s32(from),
            2 => vcombine_s32(vld1_s32(from), vdup_n_s32(0)),
            3 => {
                let pair = vcombine_s32(vld1_s32(from), vdup_n_s32(0));
                vld1q_lane_s32::<2>(from.add(2), pair)
            }
            _ => vld1q_s32(from),
        }
    }
}

/// Adds the products of a register of weights, four of each column, with four bytes of each row.
///
/// # Safety
/// The processor has the dot product.
#[inline(always)]
unsafe fn dots<const ROWS: usize>(
    sums: &mut QuarterSums<ROWS>,
    quarter: usize,
    weights: int8x16_t,
    quants: [int32x4_t; 2],
) {
    // Written out, for the lane is a part of the instruction.
    // SAFETY: as the caller guarantees.
    unsafe {
        sums[0][quarter] = dot::<0>(sums[0][quarter], weights, quants[0]);
        if ROWS > 1 {
            sums[1][quarter] = dot::<1>(sums[1][quarter], weights, quants[0]);
        }
        if ROWS > 2 {
            sums[2][quarter] = dot::<2>(sums[2][quarter], weights, quants[0]);
        }
        if ROWS > 3 {
            sums[3][quarter] = dot::<3>(sums[3][quarter], weights, quants[0]);
        }
        if ROWS > 4 {
            sums[4][quarter] = dot::<0>(sums[4][quarter], weights, quants[1]);
        }
        if ROWS > 5 {
            sums[5][quarter] = dot::<1>(sums[5][quarter], weights, quants[1]);
        }
    }
}

/// Four products of signed bytes, added to each 32-bit lane; the second factors are those of one lane.
///
/// # Safety
/// The processor has the dot product.
#[inline(always)]
unsafe fn dot<const LANE: i32>(mut sum: int32x4_t, weights: int8x16_t, quants: int32x4_t) -> int32x4_t {
    // SAFETY: as the caller guarantees; nothing but registers is touched.
    unsafe {
        std::arch::asm!(
            ".arch_extension dotprod",
            "sdot {sum:v}.4s, {weights:v}.16b, {quants:v}.4b[{lane}]",
            sum = inout(vreg) sum,
            weights = in(vreg) weights,
            quants = in(vreg) quants,
            lane = const LANE,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    sum
}
