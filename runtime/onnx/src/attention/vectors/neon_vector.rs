//! Registers of 128 bits: NEON, with dot products of bytes where the processor has them.

use std::arch::aarch64::{
    float32x4_t, int8x16_t, int16x8_t, int32x4_t, vaddq_f32, vaddq_s32, vandq_s16, vbslq_f32, vcgtq_f32,
    vcltq_f32, vcltq_u32, vcvt_f32_f16, vcvtnq_s32_f32, vcvtq_f32_s32, vdupq_n_f32, vdupq_n_s8, vdupq_n_s16,
    vdupq_n_s32, vdupq_n_u8, vdupq_n_u32, veorq_s8, vextq_f32, vfmaq_f32, vget_low_s16, vld1_u16, vld1q_f32,
    vld1q_s8, vld1q_u32, vmaxnmvq_f32, vmlal_high_s16, vmlal_s16, vmulq_f32, vmulq_n_f32, vmulq_n_s32,
    vpadalq_s16, vpaddlq_s8, vpaddq_s32, vreinterpret_f16_u16, vreinterpretq_f32_s32, vreinterpretq_s8_s32,
    vreinterpretq_s8_u8, vreinterpretq_s16_s32, vreinterpretq_s16_u16, vreinterpretq_s32_s8,
    vreinterpretq_u16_s16, vrev64q_f32, vrndnq_f32, vshlq_n_s16, vshlq_n_s32, vshrq_n_s16, vshrq_n_u16,
    vst1q_f32, vst1q_s32, vsubq_f32,
};

use super::{
    ByteProducts, Vector, WEIGHT_OFFSET_BITS, WordLines, byte_lines, even_and_odd, lowered_even_and_odd,
};
use crate::attention::i8_tile::{LOWER_QUERY_BITS, LOWER_QUERY_HALF};
use crate::attention::layout::BLOCK_TOKENS;

/// Registers of 4 lanes.
pub(in crate::attention) enum Neon {}

impl Vector for Neon {
    const LANES: usize = 4;
    type Floats = float32x4_t;
    type Ints = int32x4_t;

    #[inline(always)]
    unsafe fn set(value: f32) -> float32x4_t {
        // SAFETY: NEON is part of the architecture.
        unsafe { vdupq_n_f32(value) }
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> float32x4_t {
        // SAFETY: as the caller guarantees.
        unsafe { vld1q_f32(from) }
    }

    #[inline(always)]
    unsafe fn store(to: *mut f32, value: float32x4_t) {
        // SAFETY: as the caller guarantees.
        unsafe { vst1q_f32(to, value) }
    }

    #[inline(always)]
    unsafe fn load_f16(from: *const u16) -> float32x4_t {
        // SAFETY: as the caller guarantees.
        unsafe { vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(from))) }
    }

    #[inline(always)]
    unsafe fn add(a: float32x4_t, b: float32x4_t) -> float32x4_t {
        // SAFETY: NEON is part of the architecture.
        unsafe { vaddq_f32(a, b) }
    }

    #[inline(always)]
    unsafe fn sub(a: float32x4_t, b: float32x4_t) -> float32x4_t {
        // SAFETY: NEON is part of the architecture.
        unsafe { vsubq_f32(a, b) }
    }

    #[inline(always)]
    unsafe fn mul(a: float32x4_t, b: float32x4_t) -> float32x4_t {
        // SAFETY: NEON is part of the architecture.
        unsafe { vmulq_f32(a, b) }
    }

    #[inline(always)]
    unsafe fn mul_add(a: float32x4_t, b: float32x4_t, c: float32x4_t) -> float32x4_t {
        // SAFETY: NEON is part of the architecture.
        unsafe { vfmaq_f32(c, a, b) }
    }

    #[inline(always)]
    unsafe fn max(a: float32x4_t, b: float32x4_t) -> float32x4_t {
        // Not `fmax`, which gives NaN where either is.
        // SAFETY: NEON is part of the architecture.
        unsafe { vbslq_f32(vcgtq_f32(a, b), a, b) }
    }

    #[inline(always)]
    unsafe fn min(a: float32x4_t, b: float32x4_t) -> float32x4_t {
        // SAFETY: NEON is part of the architecture.
        unsafe { vbslq_f32(vcltq_f32(a, b), a, b) }
    }

    #[inline(always)]
    unsafe fn round(value: float32x4_t) -> float32x4_t {
        // SAFETY: NEON is part of the architecture.
        unsafe { vrndnq_f32(value) }
    }

    #[inline(always)]
    unsafe fn scale(value: float32x4_t, power: float32x4_t) -> float32x4_t {
        const BIAS: i32 = 127;
        const MANTISSA_BITS: i32 = 23;
        // SAFETY: NEON is part of the architecture; the power's exponent is that of a normal number.
        unsafe {
            let exponent = vaddq_s32(vcvtnq_s32_f32(power), vdupq_n_s32(BIAS));
            vmulq_f32(
                value,
                vreinterpretq_f32_s32(vshlq_n_s32::<MANTISSA_BITS>(exponent)),
            )
        }
    }

    #[inline(always)]
    unsafe fn first(count: usize, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        let count = u32::try_from(count).unwrap_or(u32::MAX);
        // SAFETY: NEON is part of the architecture.
        unsafe {
            let lanes = vld1q_u32([0, 1, 2, 3].as_ptr());
            vbslq_f32(vcltq_u32(lanes, vdupq_n_u32(count)), a, b)
        }
    }

    #[inline(always)]
    unsafe fn largest(value: float32x4_t) -> f32 {
        // SAFETY: NEON is part of the architecture.
        unsafe { vmaxnmvq_f32(value) }
    }

    #[inline(always)]
    unsafe fn mix(values: *mut f32, factor: f32) {
        // SAFETY: as the caller guarantees: 16 values.
        unsafe {
            let mut x: [float32x4_t; 4] = std::array::from_fn(|part| {
                mix_register(vmulq_n_f32(vld1q_f32(values.add(4 * part)), factor))
            });
            for distance in [1, 2] {
                for at in [0, if distance == 1 { 2 } else { 1 }] {
                    let (low, high) = (x[at], x[at + distance]);
                    x[at] = vaddq_f32(low, high);
                    x[at + distance] = vsubq_f32(low, high);
                }
            }
            for (part, x) in x.into_iter().enumerate() {
                vst1q_f32(values.add(4 * part), x);
            }
        }
    }

    #[inline(always)]
    unsafe fn set_ints(value: i32) -> int32x4_t {
        // SAFETY: NEON is part of the architecture.
        unsafe { vdupq_n_s32(value) }
    }

    #[inline(always)]
    unsafe fn load_ints(from: *const u8) -> int32x4_t {
        // SAFETY: as the caller guarantees.
        unsafe { vreinterpretq_s32_s8(vld1q_s8(from.cast())) }
    }

    #[inline(always)]
    unsafe fn store_ints(to: *mut i32, value: int32x4_t) {
        // SAFETY: as the caller guarantees.
        unsafe { vst1q_s32(to, value) }
    }

    #[inline(always)]
    unsafe fn add_ints(a: int32x4_t, b: int32x4_t) -> int32x4_t {
        // SAFETY: NEON is part of the architecture.
        unsafe { vaddq_s32(a, b) }
    }

    #[inline(always)]
    unsafe fn to_ints(value: float32x4_t) -> int32x4_t {
        // SAFETY: NEON is part of the architecture.
        unsafe { vcvtnq_s32_f32(value) }
    }

    #[inline(always)]
    unsafe fn to_floats(value: int32x4_t) -> float32x4_t {
        // SAFETY: NEON is part of the architecture.
        unsafe { vcvtq_f32_s32(value) }
    }
}

/// Lanes at a distance of 1 and 2 become their sum and their difference.
///
/// # Safety
/// None: NEON is part of the architecture.
#[inline(always)]
unsafe fn mix_register(x: float32x4_t) -> float32x4_t {
    // SAFETY: the arrays are as wide as a register.
    unsafe {
        let signs = vld1q_f32([1.0, -1.0, 1.0, -1.0].as_ptr());
        let x = vfmaq_f32(vrev64q_f32(x), x, signs);
        let signs = vld1q_f32([1.0, 1.0, -1.0, -1.0].as_ptr());
        vfmaq_f32(vextq_f32::<2>(x, x), x, signs)
    }
}

/// Without dot products: bytes are widened to 16 bits, those of even places and those of odd ones apart, and the products of
/// two columns are added in one register each.
///
/// Weights of 16 bits are lowered to signed ones, and what that takes from the sum is added again.
impl ByteProducts for Neon {
    type Lanes = Self;

    #[inline(always)]
    fn query_words(integers: &[i32; BLOCK_TOKENS]) -> WordLines {
        even_and_odd(integers)
    }

    #[inline(always)]
    unsafe fn add_keys(sums: &mut [int32x4_t; 2], keys: int32x4_t, query: [int32x4_t; 2]) {
        // SAFETY: NEON is part of the architecture.
        unsafe {
            let keys = vreinterpretq_s16_s32(keys);
            let even = vandq_s16(keys, vdupq_n_s16(0xff));
            let odd = vreinterpretq_s16_u16(vshrq_n_u16::<8>(vreinterpretq_u16_s16(keys)));
            add_products(sums, even, query[0]);
            add_products(sums, odd, query[1]);
        }
    }

    #[inline(always)]
    unsafe fn key_total([low, high]: [int32x4_t; 2]) -> int32x4_t {
        // SAFETY: NEON is part of the architecture.
        unsafe { vpaddq_s32(low, high) }
    }

    #[inline(always)]
    fn weight_words(integers: &[i32; BLOCK_TOKENS]) -> WordLines {
        lowered_even_and_odd(integers)
    }

    #[inline(always)]
    unsafe fn add_plain_values(sum: int32x4_t, values: int32x4_t) -> int32x4_t {
        // SAFETY: NEON is part of the architecture.
        unsafe { vpadalq_s16(sum, vpaddlq_s8(vreinterpretq_s8_s32(values))) }
    }

    #[inline(always)]
    unsafe fn add_values(sums: &mut [int32x4_t; 2], values: int32x4_t, weights: [int32x4_t; 2]) {
        // SAFETY: NEON is part of the architecture.
        unsafe {
            let values = vreinterpretq_s16_s32(values);
            let even = vshrq_n_s16::<8>(vshlq_n_s16::<8>(values));
            add_products(sums, even, weights[0]);
            add_products(sums, vshrq_n_s16::<8>(values), weights[1]);
        }
    }

    #[inline(always)]
    unsafe fn value_total([low, high]: [int32x4_t; 2], plain: int32x4_t) -> float32x4_t {
        // SAFETY: NEON is part of the architecture; 64 tokens of 65,535 * 128 at most fit 32 bits.
        unsafe {
            let lowered = vshlq_n_s32::<WEIGHT_OFFSET_BITS>(plain);
            vcvtq_f32_s32(vaddq_s32(vpaddq_s32(low, high), lowered))
        }
    }
}

/// Adds the products of 16-bit integers: those of the first two columns, and those of the last two.
///
/// # Safety
/// None: NEON is part of the architecture.
#[inline(always)]
unsafe fn add_products([low, high]: &mut [int32x4_t; 2], a: int16x8_t, b: int32x4_t) {
    // SAFETY: NEON is part of the architecture.
    unsafe {
        let b = vreinterpretq_s16_s32(b);
        *low = vmlal_s16(*low, vget_low_s16(a), vget_low_s16(b));
        *high = vmlal_high_s16(*high, a, b);
    }
}

/// Dot products of signed bytes: keys and weights are lowered by 128 a byte. What that takes from a sum of keys was not
/// counted in it ([`ByteProducts::KEY_OFFSET`]); what it takes from a sum of values is added again.
pub(in crate::attention) enum NeonDot {}

/// What weights of two bytes are lowered by: 128 each.
const WEIGHT_OFFSET: i32 = 128 * 257;

impl ByteProducts for NeonDot {
    type Lanes = Neon;
    const KEY_OFFSET: i32 = 0;

    #[inline(always)]
    fn query_words(integers: &[i32; BLOCK_TOKENS]) -> WordLines {
        byte_lines(integers, LOWER_QUERY_BITS, LOWER_QUERY_HALF)
    }

    #[inline(always)]
    unsafe fn add_keys(sums: &mut [int32x4_t; 2], keys: int32x4_t, query: [int32x4_t; 2]) {
        // SAFETY: as the caller guarantees.
        unsafe {
            let lowered = veorq_s8(vreinterpretq_s8_s32(keys), vreinterpretq_s8_u8(vdupq_n_u8(128)));
            for byte in 0..2 {
                sums[byte] = dot(sums[byte], lowered, vreinterpretq_s8_s32(query[byte]));
            }
        }
    }

    #[inline(always)]
    unsafe fn key_total([upper, lower]: [int32x4_t; 2]) -> int32x4_t {
        const BITS: i32 = LOWER_QUERY_BITS.cast_signed();
        // SAFETY: NEON is part of the architecture.
        unsafe { vaddq_s32(vshlq_n_s32::<BITS>(upper), lower) }
    }

    #[inline(always)]
    fn weight_words(integers: &[i32; BLOCK_TOKENS]) -> WordLines {
        byte_lines(integers, 8, 0).map(|line| line.map(|byte| byte ^ 128))
    }

    #[inline(always)]
    unsafe fn add_plain_values(sum: int32x4_t, values: int32x4_t) -> int32x4_t {
        // SAFETY: as the caller guarantees.
        unsafe { dot(sum, vreinterpretq_s8_s32(values), vdupq_n_s8(1)) }
    }

    #[inline(always)]
    unsafe fn add_values(sums: &mut [int32x4_t; 2], values: int32x4_t, weights: [int32x4_t; 2]) {
        for byte in 0..2 {
            // SAFETY: as the caller guarantees.
            unsafe {
                let (values, weights) = (vreinterpretq_s8_s32(values), vreinterpretq_s8_s32(weights[byte]));
                sums[byte] = dot(sums[byte], values, weights);
            }
        }
    }

    #[inline(always)]
    unsafe fn value_total([upper, lower]: [int32x4_t; 2], plain: int32x4_t) -> float32x4_t {
        // SAFETY: NEON is part of the architecture; 64 tokens of 65,535 * 128 at most fit 32 bits.
        unsafe {
            let lowered = vmulq_n_s32(plain, WEIGHT_OFFSET);
            vcvtq_f32_s32(vaddq_s32(vaddq_s32(vshlq_n_s32::<8>(upper), lower), lowered))
        }
    }
}

/// Four products of signed bytes, added to each lane: `sdot`, whose intrinsic is not stable.
///
/// # Safety
/// The processor has the dot product.
#[inline(always)]
unsafe fn dot(mut sum: int32x4_t, a: int8x16_t, b: int8x16_t) -> int32x4_t {
    // SAFETY: as the caller guarantees; nothing but registers is touched.
    unsafe {
        std::arch::asm!(
            ".arch_extension dotprod",
            "sdot {sum:v}.4s, {a:v}.16b, {b:v}.16b",
            sum = inout(vreg) sum,
            a = in(vreg) a,
            b = in(vreg) b,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    sum
}
