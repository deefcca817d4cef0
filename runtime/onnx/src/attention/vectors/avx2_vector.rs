//! Registers of 256 bits: AVX2, FMA and F16C, with dot products of bytes where the processor has them.

use std::arch::x86_64::{
    __m256, __m256i, _mm_loadu_si128, _mm256_add_epi32, _mm256_add_ps, _mm256_and_si256, _mm256_blendv_ps,
    _mm256_castsi256_ps, _mm256_cmpgt_epi32, _mm256_cvtepi32_ps, _mm256_cvtph_ps, _mm256_cvtps_epi32,
    _mm256_dpbusd_avx_epi32, _mm256_dpbusd_epi32, _mm256_fmadd_ps, _mm256_loadu_ps, _mm256_loadu_si256,
    _mm256_madd_epi16, _mm256_max_ps, _mm256_min_ps, _mm256_mul_ps, _mm256_permute_ps,
    _mm256_permute2f128_ps, _mm256_round_ps, _mm256_set1_epi16, _mm256_set1_epi32, _mm256_set1_ps,
    _mm256_setr_epi32, _mm256_setr_ps, _mm256_slli_epi16, _mm256_slli_epi32, _mm256_srai_epi16,
    _mm256_srli_epi16, _mm256_storeu_ps, _mm256_storeu_si256, _mm256_sub_ps,
};

use super::{
    ByteProducts, Vector, WEIGHT_OFFSET_BITS, WordLines, byte_lines, even_and_odd, lowered_even_and_odd,
};
use crate::attention::i8_tile::{LOWER_QUERY_BITS, LOWER_QUERY_HALF};
use crate::attention::layout::BLOCK_TOKENS;

/// Registers of 8 lanes.
pub(in crate::attention) enum Avx2 {}

impl Vector for Avx2 {
    const LANES: usize = 8;
    type Floats = __m256;
    type Ints = __m256i;

    #[inline(always)]
    unsafe fn set(value: f32) -> __m256 {
        // SAFETY: as the caller guarantees.
        unsafe { _mm256_set1_ps(value) }
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> __m256 {
        // SAFETY: as the caller guarantees.
        unsafe { _mm256_loadu_ps(from) }
    }

    #[inline(always)]
    unsafe fn store(to: *mut f32, value: __m256) {
        // SAFETY: as the caller guarantees.
        unsafe { _mm256_storeu_ps(to, value) }
    }

    #[inline(always)]
    unsafe fn load_f16(from: *const u16) -> __m256 {
        // SAFETY: as the caller guarantees.
        unsafe { _mm256_cvtph_ps(_mm_loadu_si128(from.cast())) }
    }

    #[inline(always)]
    unsafe fn add(a: __m256, b: __m256) -> __m256 {
        // SAFETY: as the caller guarantees.
        unsafe { _mm256_add_ps(a, b) }
    }

    #[inline(always)]
    unsafe fn sub(a: __m256, b: __m256) -> __m256 {
        // SAFETY: as the caller guarantees.
        unsafe { _mm256_sub_ps(a, b) }
    }

    #[inline(always)]
    unsafe fn mul(a: __m256, b: __m256) -> __m256 {
        // SAFETY: as the caller guarantees.
        unsafe { _mm256_mul_ps(a, b) }
    }

    #[inline(always)]
    unsafe fn mul_add(a: __m256, b: __m256, c: __m256) -> __m256 {
        // SAFETY: as the caller guarantees.
        unsafe { _mm256_fmadd_ps(a, b, c) }
    }

    #[inline(always)]
    unsafe fn max(a: __m256, b: __m256) -> __m256 {
        // SAFETY: as the caller guarantees.
        unsafe { _mm256_max_ps(a, b) }
    }

    #[inline(always)]
    unsafe fn min(a: __m256, b: __m256) -> __m256 {
        // SAFETY: as the caller guarantees.
        unsafe { _mm256_min_ps(a, b) }
    }

    #[inline(always)]
    unsafe fn round(value: __m256) -> __m256 {
        // SAFETY: as the caller guarantees.
        unsafe { _mm256_round_ps::<0x08>(value) }
    }

    #[inline(always)]
    unsafe fn scale(value: __m256, power: __m256) -> __m256 {
        const BIAS: i32 = 127;
        const MANTISSA_BITS: i32 = 23;
        // SAFETY: as the caller guarantees: the power's exponent is that of a normal number.
        unsafe {
            let exponent = _mm256_add_epi32(_mm256_cvtps_epi32(power), _mm256_set1_epi32(BIAS));
            _mm256_mul_ps(
                value,
                _mm256_castsi256_ps(_mm256_slli_epi32::<MANTISSA_BITS>(exponent)),
            )
        }
    }

    #[inline(always)]
    unsafe fn first(count: usize, a: __m256, b: __m256) -> __m256 {
        let count = i32::try_from(count).unwrap_or(i32::MAX);
        // SAFETY: as the caller guarantees.
        unsafe {
            let lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
            let mask = _mm256_cmpgt_epi32(_mm256_set1_epi32(count), lanes);
            _mm256_blendv_ps(b, a, _mm256_castsi256_ps(mask))
        }
    }

    #[inline(always)]
    unsafe fn largest(value: __m256) -> f32 {
        let mut lanes = [0f32; Self::LANES];
        // SAFETY: as the caller guarantees.
        unsafe { _mm256_storeu_ps(lanes.as_mut_ptr(), value) };
        lanes.into_iter().fold(f32::NEG_INFINITY, f32::max)
    }

    #[inline(always)]
    unsafe fn mix(values: *mut f32, factor: f32) {
        // SAFETY: as the caller guarantees.
        unsafe {
            let low = mix_half(values, factor);
            let high = mix_half(values.add(Self::LANES), factor);
            _mm256_storeu_ps(values, _mm256_add_ps(low, high));
            _mm256_storeu_ps(values.add(Self::LANES), _mm256_sub_ps(low, high));
        }
    }

    #[inline(always)]
    unsafe fn set_ints(value: i32) -> __m256i {
        // SAFETY: as the caller guarantees.
        unsafe { _mm256_set1_epi32(value) }
    }

    #[inline(always)]
    unsafe fn load_ints(from: *const u8) -> __m256i {
        // SAFETY: as the caller guarantees.
        unsafe { _mm256_loadu_si256(from.cast()) }
    }

    #[inline(always)]
    unsafe fn store_ints(to: *mut i32, value: __m256i) {
        // SAFETY: as the caller guarantees.
        unsafe { _mm256_storeu_si256(to.cast(), value) }
    }

    #[inline(always)]
    unsafe fn add_ints(a: __m256i, b: __m256i) -> __m256i {
        // SAFETY: as the caller guarantees.
        unsafe { _mm256_add_epi32(a, b) }
    }

    #[inline(always)]
    unsafe fn to_ints(value: __m256) -> __m256i {
        // SAFETY: as the caller guarantees.
        unsafe { _mm256_cvtps_epi32(value) }
    }

    #[inline(always)]
    unsafe fn to_floats(value: __m256i) -> __m256 {
        // SAFETY: as the caller guarantees.
        unsafe { _mm256_cvtepi32_ps(value) }
    }
}

/// Values times `factor`; then lanes at a distance of 1, 2 and 4 become their sum and their difference.
///
/// # Safety
/// The processor has AVX2 and FMA; there are eight values.
#[inline(always)]
unsafe fn mix_half(values: *const f32, factor: f32) -> __m256 {
    // SAFETY: as the caller guarantees.
    unsafe {
        let x = _mm256_mul_ps(_mm256_loadu_ps(values), _mm256_set1_ps(factor));
        let signs = _mm256_setr_ps(1.0, -1.0, 1.0, -1.0, 1.0, -1.0, 1.0, -1.0);
        let x = _mm256_fmadd_ps(x, signs, _mm256_permute_ps::<0b10_11_00_01>(x));
        let signs = _mm256_setr_ps(1.0, 1.0, -1.0, -1.0, 1.0, 1.0, -1.0, -1.0);
        let x = _mm256_fmadd_ps(x, signs, _mm256_permute_ps::<0b01_00_11_10>(x));
        let signs = _mm256_setr_ps(1.0, 1.0, 1.0, 1.0, -1.0, -1.0, -1.0, -1.0);
        _mm256_fmadd_ps(x, signs, _mm256_permute2f128_ps::<1>(x, x))
    }
}

/// Without dot products: bytes are widened to 16 bits, those of even places and those of odd ones apart.
///
/// Weights of 16 bits are lowered to signed ones, and what that takes from the sum is added again.
impl ByteProducts for Avx2 {
    type Lanes = Self;

    #[inline(always)]
    fn query_words(integers: &[i32; BLOCK_TOKENS]) -> WordLines {
        even_and_odd(integers)
    }

    #[inline(always)]
    unsafe fn add_keys(sums: &mut [__m256i; 2], keys: __m256i, query: [__m256i; 2]) {
        // SAFETY: as the caller guarantees.
        unsafe {
            let even = _mm256_and_si256(keys, _mm256_set1_epi16(0xff));
            let odd = _mm256_srli_epi16::<8>(keys);
            sums[0] = _mm256_add_epi32(sums[0], _mm256_madd_epi16(even, query[0]));
            sums[1] = _mm256_add_epi32(sums[1], _mm256_madd_epi16(odd, query[1]));
        }
    }

    #[inline(always)]
    unsafe fn key_total([even, odd]: [__m256i; 2]) -> __m256i {
        // SAFETY: as the caller guarantees.
        unsafe { _mm256_add_epi32(even, odd) }
    }

    #[inline(always)]
    fn weight_words(integers: &[i32; BLOCK_TOKENS]) -> WordLines {
        lowered_even_and_odd(integers)
    }

    #[inline(always)]
    unsafe fn add_plain_values(sum: __m256i, values: __m256i) -> __m256i {
        // SAFETY: as the caller guarantees.
        unsafe {
            let [even, odd] = widened(values);
            let ones = _mm256_set1_epi16(1);
            let sum = _mm256_add_epi32(sum, _mm256_madd_epi16(even, ones));
            _mm256_add_epi32(sum, _mm256_madd_epi16(odd, ones))
        }
    }

    #[inline(always)]
    unsafe fn add_values(sums: &mut [__m256i; 2], values: __m256i, weights: [__m256i; 2]) {
        // SAFETY: as the caller guarantees.
        unsafe {
            let [even, odd] = widened(values);
            sums[0] = _mm256_add_epi32(sums[0], _mm256_madd_epi16(even, weights[0]));
            sums[0] = _mm256_add_epi32(sums[0], _mm256_madd_epi16(odd, weights[1]));
        }
    }

    #[inline(always)]
    unsafe fn value_total([sum, _]: [__m256i; 2], plain: __m256i) -> __m256 {
        // SAFETY: as the caller guarantees; 64 tokens of 65,535 * 128 at most fit 32 bits.
        unsafe {
            let lowered = _mm256_slli_epi32::<WEIGHT_OFFSET_BITS>(plain);
            _mm256_cvtepi32_ps(_mm256_add_epi32(sum, lowered))
        }
    }
}

/// Signed bytes in 16 bits: those at even places, and those at odd ones.
///
/// # Safety
/// The processor has AVX2.
#[inline(always)]
unsafe fn widened(bytes: __m256i) -> [__m256i; 2] {
    // SAFETY: as the caller guarantees.
    unsafe {
        let even = _mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(bytes));
        [even, _mm256_srai_epi16::<8>(bytes)]
    }
}

macro_rules! dot_products {
    ($name:ident, $dot:ident, $says:literal) => {
        #[doc = $says]
        pub(in crate::attention) enum $name {}

        impl ByteProducts for $name {
            type Lanes = Avx2;

            #[inline(always)]
            fn query_words(integers: &[i32; BLOCK_TOKENS]) -> WordLines {
                byte_lines(integers, LOWER_QUERY_BITS, LOWER_QUERY_HALF)
            }

            #[inline(always)]
            unsafe fn add_keys(sums: &mut [__m256i; 2], keys: __m256i, query: [__m256i; 2]) {
                for byte in 0..2 {
                    // SAFETY: as the caller guarantees.
                    sums[byte] = unsafe { $dot(sums[byte], keys, query[byte]) };
                }
            }

            #[inline(always)]
            unsafe fn key_total([upper, lower]: [__m256i; 2]) -> __m256i {
                const BITS: i32 = LOWER_QUERY_BITS.cast_signed();
                // SAFETY: as the caller guarantees.
                unsafe { _mm256_add_epi32(_mm256_slli_epi32::<BITS>(upper), lower) }
            }

            #[inline(always)]
            fn weight_words(integers: &[i32; BLOCK_TOKENS]) -> WordLines {
                byte_lines(integers, 8, 0)
            }

            #[inline(always)]
            unsafe fn add_plain_values(sum: __m256i, _values: __m256i) -> __m256i {
                sum
            }

            #[inline(always)]
            unsafe fn add_values(sums: &mut [__m256i; 2], values: __m256i, weights: [__m256i; 2]) {
                for byte in 0..2 {
                    // SAFETY: as the caller guarantees.
                    sums[byte] = unsafe { $dot(sums[byte], weights[byte], values) };
                }
            }

            #[inline(always)]
            unsafe fn value_total([upper, lower]: [__m256i; 2], _plain: __m256i) -> __m256 {
                // SAFETY: as the caller guarantees; 64 tokens of 65,535 * 128 at most fit 32 bits.
                unsafe { _mm256_cvtepi32_ps(_mm256_add_epi32(_mm256_slli_epi32::<8>(upper), lower)) }
            }
        }
    };
}

dot_products!(
    Vnni256Evex,
    _mm256_dpbusd_epi32,
    "Dot products of AVX-512VL with VNNI."
);
dot_products!(Vnni256Vex, _mm256_dpbusd_avx_epi32, "Dot products of AVX-VNNI.");
