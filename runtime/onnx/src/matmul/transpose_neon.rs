//! Transposition of words of four bytes with NEON, for the packing of weights.

use std::arch::aarch64::{
    int32x4_t, vdupq_n_s32, vld1q_s32, vreinterpretq_s32_s64, vreinterpretq_s64_s32, vst1q_s32, vtrn1q_s32,
    vtrn1q_s64, vtrn2q_s32, vtrn2q_s64,
};

use crate::matmul::LANES;
use crate::matmul::operands::{WordColumns, WordLine};

/// Words of a register.
const SIDE: usize = 4;

/// Lays words side by side: in squares of four words and columns.
///
/// # Safety
/// As for [`MatMulKernels::transpose`](crate::matmul::kernels::MatMulKernels::transpose).
pub(crate) unsafe fn transpose(source: WordColumns, start: usize) -> [WordLine; LANES] {
    let mut lines = [[0; LANES]; LANES];
    for from in (0..LANES).step_by(SIDE) {
        let left = source.length.saturating_sub(start + from).min(SIDE);
        for first in (0..source.columns).step_by(SIDE) {
            // SAFETY: NEON is part of the architecture; words beyond the column's end and columns that are not there are not
            // read.
            unsafe {
                let mut square = [vdupq_n_s32(0); SIDE];
                for (at, column) in square.iter_mut().enumerate().take(source.columns - first) {
                    let place = source
                        .first
                        .wrapping_add((first + at) * source.length + start + from);
                    *column = words(place, left);
                }
                for (at, line) in transposed(square).into_iter().enumerate() {
                    vst1q_s32(lines[from + at][first..].as_mut_ptr(), line);
                }
            }
        }
    }
    lines
}

/// Up to four words, then zeros.
///
/// # Safety
/// There are as many.
#[inline(always)]
unsafe fn words(from: *const i32, count: usize) -> int32x4_t {
    // SAFETY: as the caller guarantees.
    unsafe {
        if count == SIDE {
            return vld1q_s32(from);
        }
        let mut words = [0; SIDE];
        std::ptr::copy_nonoverlapping(from, words.as_mut_ptr(), count);
        vld1q_s32(words.as_ptr())
    }
}

/// Four registers of four words, the other way round.
#[inline(always)]
fn transposed([a, b, c, d]: [int32x4_t; SIDE]) -> [int32x4_t; SIDE] {
    // SAFETY: NEON is part of the architecture.
    unsafe {
        let pairs = [
            vtrn1q_s32(a, b),
            vtrn2q_s32(a, b),
            vtrn1q_s32(c, d),
            vtrn2q_s32(c, d),
        ];
        let [ab_even, ab_odd, cd_even, cd_odd] = pairs.map(|pair| vreinterpretq_s64_s32(pair));
        [
            vtrn1q_s64(ab_even, cd_even),
            vtrn1q_s64(ab_odd, cd_odd),
            vtrn2q_s64(ab_even, cd_even),
            vtrn2q_s64(ab_odd, cd_odd),
        ]
        .map(|line| vreinterpretq_s32_s64(line))
    }
}
