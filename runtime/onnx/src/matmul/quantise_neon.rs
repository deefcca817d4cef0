//! Quantisation of the input's rows to eight bits with NEON, with a scale for each block, as accuracy level 4 of
//! `MatMulNBits` has it.

use std::arch::aarch64::{
    float32x4_t, int8x16_t, vaddlvq_s8, vandq_u32, vcombine_s8, vcombine_s16, vcvtnq_s32_f32, vdupq_n_u32,
    vgetq_lane_s32, vld1q_f32, vmaxq_u32, vmaxvq_u32, vmulq_n_f32, vqmovn_s16, vqmovn_s32,
    vreinterpretq_s32_s8, vreinterpretq_u32_f32, vuzp1q_s8, vuzp2q_s8,
};

use crate::matmul::LANES;
use crate::matmul::operands::PanelRow;

/// Values of a word.
const WORD: usize = 8;
/// Registers of 16 values.
const REGISTERS: usize = 4;

/// Quantises one row.
///
/// # Safety
/// As for [`MatMulKernels::quantise`](crate::matmul::kernels::MatMulKernels::quantise).
pub(crate) unsafe fn quantise(row: &[f32], block: usize, place: &PanelRow) {
    for index in 0..row.len().div_ceil(block) {
        let start = index * block;
        // SAFETY: NEON is part of the architecture; the panel has room for whole blocks of this row, as the caller guarantees.
        unsafe {
            let mut largest = vdupq_n_u32(0);
            for at in (start..start + block).step_by(LANES) {
                // Magnitudes compare as whole numbers do, and NaN is the largest of them: so it isn't lost.
                for values in load(row, at) {
                    let bits = vandq_u32(vreinterpretq_u32_f32(values), vdupq_n_u32(0x7fff_ffff));
                    largest = vmaxq_u32(largest, bits);
                }
            }
            let largest = f32::from_bits(vmaxvq_u32(largest));
            let inverse = if largest == 0.0 { 0.0 } else { 127.0 / largest };
            let mut sum = 0i32;
            for at in (start..start + block).step_by(LANES) {
                let bytes = rounded(load(row, at), inverse);
                sum += i32::from(vaddlvq_s8(bytes));
                // The even values of eight, then the odd ones: in the weights, they are the low and the high halves of the
                // bytes.
                let even = vreinterpretq_s32_s8(vuzp1q_s8(bytes, bytes));
                let odd = vreinterpretq_s32_s8(vuzp2q_s8(bytes, bytes));
                let to = place.quants.add(at / WORD * 2 * place.rows + place.row);
                to.write(vgetq_lane_s32::<0>(even));
                to.add(place.rows).write(vgetq_lane_s32::<0>(odd));
                to.add(2 * place.rows).write(vgetq_lane_s32::<1>(even));
                to.add(3 * place.rows).write(vgetq_lane_s32::<1>(odd));
            }
            let at = index * place.rows + place.row;
            place.scales.add(at).write(largest / 127.0);
            place.sums.add(at).write(-sum);
        }
    }
}

/// Sixteen values of a row; zeros behind its end.
#[inline(always)]
fn load(row: &[f32], at: usize) -> [float32x4_t; REGISTERS] {
    let mut values = [0f32; LANES];
    let from = row.get(at..).unwrap_or_default();
    let count = from.len().min(LANES);
    values[..count].copy_from_slice(&from[..count]);
    // SAFETY: NEON is part of the architecture; the array has four registers.
    std::array::from_fn(|register| unsafe { vld1q_f32(values.as_ptr().add(4 * register)) })
}

/// Values times `factor`, rounded to the nearest bytes, halves to even ones; what is no number becomes 0.
#[inline(always)]
fn rounded(values: [float32x4_t; REGISTERS], factor: f32) -> int8x16_t {
    // SAFETY: NEON is part of the architecture.
    unsafe {
        let [a, b, c, d] = values.map(|values| vqmovn_s32(vcvtnq_s32_f32(vmulq_n_f32(values, factor))));
        vcombine_s8(vqmovn_s16(vcombine_s16(a, b)), vqmovn_s16(vcombine_s16(c, d)))
    }
}
