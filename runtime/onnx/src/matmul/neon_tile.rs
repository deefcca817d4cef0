//! One tile of the matmul with NEON: four registers of 128 bits for each group of columns.
//!
//! Group by group within a block: its sums stay in the 32 registers, and its lines in the first cache.

use std::arch::aarch64::{
    float32x4_t, int32x4_t, vcvtq_f32_s32, vdupq_n_f32, vdupq_n_s32, vfmaq_f32, vget_high_u8, vget_high_u16,
    vget_low_u8, vget_low_u16, vld1q_f32, vld1q_u8, vmovl_u8, vmovl_u16, vmulq_n_f32, vmulq_n_s32,
    vreinterpretq_s32_u32, vst1q_f32, vsubq_s32,
};

use crate::matmul::LANES;
use crate::matmul::group_words::GroupWords;
use crate::matmul::operands::{LINE_BYTES, Tile, WeightBits};

/// Registers of a group of columns.
pub(super) const QUARTERS: usize = 4;
/// Columns of a register.
const QUARTER_LANES: usize = LANES / QUARTERS;

/// Sums of a block's products for `ROWS` rows and one group of columns.
pub(super) type QuarterSums<const ROWS: usize> = [[int32x4_t; QUARTERS]; ROWS];

/// A way to multiply bytes with NEON.
pub(super) trait NeonProducts {
    /// Adds the products of a group's words, whose weights are signed: those of eight bits are lowered by 128.
    ///
    /// # Safety
    /// The processor has the instruction set; the words point to what their fields say.
    unsafe fn add<const ROWS: usize, const LINES: usize>(words: &GroupWords, sums: &mut QuarterSums<ROWS>);
}

/// Computes `ROWS` rows of `GROUPS` groups of columns, of weights whose words are `LINES` lines.
///
/// # Safety
/// The processor has what `P` needs; as for [`MatMulKernels::tile`](crate::matmul::kernels::MatMulKernels::tile).
#[allow(
    clippy::needless_range_loop,
    reason = "indices into arrays of registers, which the compiler unrolls"
)]
#[allow(clippy::cast_ptr_alignment, reason = "weights begin at cache lines")]
#[inline(always)]
pub(super) unsafe fn compute<P: NeonProducts, const ROWS: usize, const GROUPS: usize, const LINES: usize>(
    tile: &Tile,
) {
    // SAFETY: the fields of `tile` point to `tile.blocks` blocks of `tile.words` words each; columns outside of the output are
    // neither read nor written.
    unsafe {
        let mut sums = [[[vdupq_n_f32(0.0); QUARTERS]; ROWS]; GROUPS];
        if tile.add {
            for group in 0..GROUPS {
                for row in 0..ROWS {
                    sums[group][row] = load(tile, row, group, group + 1 == GROUPS);
                }
            }
        }
        let words_bytes = tile.words * LINES * GROUPS * LINE_BYTES;
        let mut weights = tile.weights;
        let mut quants = tile.quants;
        for block in 0..tile.blocks {
            for group in 0..GROUPS {
                let mut whole = zeros::<ROWS, LINES>(tile, block, group);
                let words = GroupWords::of::<GROUPS>(tile, group, weights, quants);
                P::add::<ROWS, LINES>(&words, &mut whole);
                let scales = weights.add(words_bytes + group * LINE_BYTES).cast::<f32>();
                for quarter in 0..QUARTERS {
                    let scales = vld1q_f32(scales.add(quarter * QUARTER_LANES));
                    for row in 0..ROWS {
                        let scale = vmulq_n_f32(scales, *tile.scales.add(block * ROWS + row));
                        let sum = &mut sums[group][row][quarter];
                        *sum = vfmaq_f32(*sum, vcvtq_f32_s32(whole[row][quarter]), scale);
                    }
                }
            }
            weights = weights.add(words_bytes + GROUPS * LINE_BYTES);
            quants = quants.add(2 * ROWS * tile.words);
        }
        for group in 0..GROUPS {
            for row in 0..ROWS {
                store(tile, row, group, group + 1 == GROUPS, sums[group][row]);
            }
        }
    }
}

/// The sums of a block before its products: the zero points' share of the row's sum is subtracted first.
///
/// # Safety
/// As for [`compute`].
#[inline(always)]
#[allow(clippy::needless_range_loop, reason = "indices into arrays of registers")]
unsafe fn zeros<const ROWS: usize, const LINES: usize>(
    tile: &Tile,
    block: usize,
    group: usize,
) -> QuarterSums<ROWS> {
    // SAFETY: as the caller guarantees; zero points are those of whole groups.
    unsafe {
        let zeros = vld1q_u8(tile.zeros.add(block * tile.zeros_step + group * LANES));
        let (low, high) = (vmovl_u8(vget_low_u8(zeros)), vmovl_u8(vget_high_u8(zeros)));
        let lowered = vdupq_n_s32(if LINES == 1 {
            0
        } else {
            i32::from(WeightBits::Eight.zero())
        });
        let zeros = [
            vmovl_u16(vget_low_u16(low)),
            vmovl_u16(vget_high_u16(low)),
            vmovl_u16(vget_low_u16(high)),
            vmovl_u16(vget_high_u16(high)),
        ]
        .map(|zeros| vsubq_s32(vreinterpretq_s32_u32(zeros), lowered));
        let mut sums = [[vdupq_n_s32(0); QUARTERS]; ROWS];
        for row in 0..ROWS {
            let sum = *tile.sums.add(block * ROWS + row);
            for quarter in 0..QUARTERS {
                sums[row][quarter] = vmulq_n_s32(zeros[quarter], sum);
            }
        }
        sums
    }
}

/// The columns of a group that the output has.
fn columns(tile: &Tile, is_last: bool) -> usize {
    if is_last {
        tile.mask.count_ones() as usize
    } else {
        LANES
    }
}

fn out(tile: &Tile, row: usize, group: usize) -> *mut f32 {
    tile.out.wrapping_add(row * tile.stride + group * LANES)
}

/// A row's columns of a group in the output; zeros for those that the output does not have.
///
/// # Safety
/// As for [`compute`].
#[inline(always)]
unsafe fn load(tile: &Tile, row: usize, group: usize, is_last: bool) -> [float32x4_t; QUARTERS] {
    let mut values = [0f32; LANES];
    // SAFETY: as the caller guarantees.
    unsafe {
        std::ptr::copy_nonoverlapping(out(tile, row, group), values.as_mut_ptr(), columns(tile, is_last));
        std::array::from_fn(|quarter| vld1q_f32(values.as_ptr().add(quarter * QUARTER_LANES)))
    }
}

/// Writes a row's columns of a group to the output, as far as it has them.
///
/// # Safety
/// As for [`compute`].
#[inline(always)]
unsafe fn store(tile: &Tile, row: usize, group: usize, is_last: bool, sums: [float32x4_t; QUARTERS]) {
    let mut values = [0f32; LANES];
    // SAFETY: as the caller guarantees.
    unsafe {
        for (quarter, sum) in sums.into_iter().enumerate() {
            vst1q_f32(values.as_mut_ptr().add(quarter * QUARTER_LANES), sum);
        }
        std::ptr::copy_nonoverlapping(values.as_ptr(), out(tile, row, group), columns(tile, is_last));
    }
}
