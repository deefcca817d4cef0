//! Registers of 512 bits: AVX-512 with VNNI.

use std::arch::x86_64::{
    __m512, __m512i, _mm256_loadu_si256, _mm512_add_epi32, _mm512_add_ps, _mm512_cvtepi32_ps,
    _mm512_cvtph_ps, _mm512_cvtps_epi32, _mm512_dpbusd_epi32, _mm512_fmadd_ps, _mm512_loadu_ps,
    _mm512_loadu_si512, _mm512_mask_mov_ps, _mm512_max_ps, _mm512_min_ps, _mm512_mul_ps, _mm512_permute_ps,
    _mm512_reduce_max_ps, _mm512_roundscale_ps, _mm512_scalef_ps, _mm512_set1_epi32, _mm512_set1_ps,
    _mm512_shuffle_f32x4, _mm512_slli_epi32, _mm512_storeu_ps, _mm512_storeu_si512, _mm512_sub_ps,
};

use super::{ByteProducts, Vector, WordLines, byte_lines};
use crate::attention::i8_tile::{LOWER_QUERY_BITS, LOWER_QUERY_HALF};
use crate::attention::layout::BLOCK_TOKENS;

/// Registers of 16 lanes.
pub(in crate::attention) enum Avx512 {}

impl Vector for Avx512 {
    const LANES: usize = 16;
    type Floats = __m512;
    type Ints = __m512i;

    #[inline(always)]
    unsafe fn set(value: f32) -> __m512 {
        // SAFETY: as the caller guarantees.
        unsafe { _mm512_set1_ps(value) }
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> __m512 {
        // SAFETY: as the caller guarantees.
        unsafe { _mm512_loadu_ps(from) }
    }

    #[inline(always)]
    unsafe fn store(to: *mut f32, value: __m512) {
        // SAFETY: as the caller guarantees.
        unsafe { _mm512_storeu_ps(to, value) }
    }

    #[inline(always)]
    unsafe fn load_f16(from: *const u16) -> __m512 {
        // SAFETY: as the caller guarantees.
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(from.cast())) }
    }

    #[inline(always)]
    unsafe fn add(a: __m512, b: __m512) -> __m512 {
        // SAFETY: as the caller guarantees.
        unsafe { _mm512_add_ps(a, b) }
    }

    #[inline(always)]
    unsafe fn sub(a: __m512, b: __m512) -> __m512 {
        // SAFETY: as the caller guarantees.
        unsafe { _mm512_sub_ps(a, b) }
    }

    #[inline(always)]
    unsafe fn mul(a: __m512, b: __m512) -> __m512 {
        // SAFETY: as the caller guarantees.
        unsafe { _mm512_mul_ps(a, b) }
    }

    #[inline(always)]
    unsafe fn mul_add(a: __m512, b: __m512, c: __m512) -> __m512 {
        // SAFETY: as the caller guarantees.
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }

    #[inline(always)]
    unsafe fn max(a: __m512, b: __m512) -> __m512 {
        // SAFETY: as the caller guarantees.
        unsafe { _mm512_max_ps(a, b) }
    }

    #[inline(always)]
    unsafe fn min(a: __m512, b: __m512) -> __m512 {
        // SAFETY: as the caller guarantees.
        unsafe { _mm512_min_ps(a, b) }
    }

    #[inline(always)]
    unsafe fn round(value: __m512) -> __m512 {
        // SAFETY: as the caller guarantees.
        unsafe { _mm512_roundscale_ps::<0>(value) }
    }

    #[inline(always)]
    unsafe fn scale(value: __m512, power: __m512) -> __m512 {
        // SAFETY: as the caller guarantees.
        unsafe { _mm512_scalef_ps(value, power) }
    }

    #[inline(always)]
    unsafe fn first(count: usize, a: __m512, b: __m512) -> __m512 {
        let mask = if count >= Self::LANES {
            0xffff
        } else {
            (1u16 << count) - 1
        };
        // SAFETY: as the caller guarantees.
        unsafe { _mm512_mask_mov_ps(b, mask, a) }
    }

    #[inline(always)]
    unsafe fn largest(value: __m512) -> f32 {
        // SAFETY: as the caller guarantees.
        unsafe { _mm512_reduce_max_ps(value) }
    }

    #[inline(always)]
    unsafe fn mix(values: *mut f32, factor: f32) {
        // SAFETY: as the caller guarantees.
        unsafe {
            let x = _mm512_mul_ps(_mm512_loadu_ps(values), _mm512_set1_ps(factor));
            // Lanes at a distance of 1, 2, 4 and 8: the first becomes their sum, the second their difference.
            let x = _mm512_fmadd_ps(
                x,
                _mm512_loadu_ps(SIGNS[0].as_ptr()),
                _mm512_permute_ps::<0b10_11_00_01>(x),
            );
            let x = _mm512_fmadd_ps(
                x,
                _mm512_loadu_ps(SIGNS[1].as_ptr()),
                _mm512_permute_ps::<0b01_00_11_10>(x),
            );
            let x = _mm512_fmadd_ps(
                x,
                _mm512_loadu_ps(SIGNS[2].as_ptr()),
                _mm512_shuffle_f32x4::<0b10_11_00_01>(x, x),
            );
            let x = _mm512_fmadd_ps(
                x,
                _mm512_loadu_ps(SIGNS[3].as_ptr()),
                _mm512_shuffle_f32x4::<0b01_00_11_10>(x, x),
            );
            _mm512_storeu_ps(values, x);
        }
    }

    #[inline(always)]
    unsafe fn set_ints(value: i32) -> __m512i {
        // SAFETY: as the caller guarantees.
        unsafe { _mm512_set1_epi32(value) }
    }

    #[inline(always)]
    unsafe fn load_ints(from: *const u8) -> __m512i {
        // SAFETY: as the caller guarantees.
        unsafe { _mm512_loadu_si512(from.cast()) }
    }

    #[inline(always)]
    unsafe fn store_ints(to: *mut i32, value: __m512i) {
        // SAFETY: as the caller guarantees.
        unsafe { _mm512_storeu_si512(to.cast(), value) }
    }

    #[inline(always)]
    unsafe fn add_ints(a: __m512i, b: __m512i) -> __m512i {
        // SAFETY: as the caller guarantees.
        unsafe { _mm512_add_epi32(a, b) }
    }

    #[inline(always)]
    unsafe fn to_ints(value: __m512) -> __m512i {
        // SAFETY: as the caller guarantees.
        unsafe { _mm512_cvtps_epi32(value) }
    }

    #[inline(always)]
    unsafe fn to_floats(value: __m512i) -> __m512 {
        // SAFETY: as the caller guarantees.
        unsafe { _mm512_cvtepi32_ps(value) }
    }
}

impl ByteProducts for Avx512 {
    type Lanes = Self;

    #[inline(always)]
    fn query_words(integers: &[i32; BLOCK_TOKENS]) -> WordLines {
        byte_lines(integers, LOWER_QUERY_BITS, LOWER_QUERY_HALF)
    }

    #[inline(always)]
    unsafe fn add_keys(sums: &mut [__m512i; 2], keys: __m512i, query: [__m512i; 2]) {
        for byte in 0..2 {
            // SAFETY: as the caller guarantees.
            sums[byte] = unsafe { _mm512_dpbusd_epi32(sums[byte], keys, query[byte]) };
        }
    }

    #[inline(always)]
    unsafe fn key_total([upper, lower]: [__m512i; 2]) -> __m512i {
        // SAFETY: as the caller guarantees.
        unsafe { _mm512_add_epi32(_mm512_slli_epi32::<LOWER_QUERY_BITS>(upper), lower) }
    }

    #[inline(always)]
    fn weight_words(integers: &[i32; BLOCK_TOKENS]) -> WordLines {
        byte_lines(integers, 8, 0)
    }

    #[inline(always)]
    unsafe fn add_plain_values(sum: __m512i, _values: __m512i) -> __m512i {
        sum
    }

    #[inline(always)]
    unsafe fn add_values(sums: &mut [__m512i; 2], values: __m512i, weights: [__m512i; 2]) {
        for byte in 0..2 {
            // SAFETY: as the caller guarantees.
            sums[byte] = unsafe { _mm512_dpbusd_epi32(sums[byte], weights[byte], values) };
        }
    }

    #[inline(always)]
    unsafe fn value_total([upper, lower]: [__m512i; 2], _plain: __m512i) -> __m512 {
        // SAFETY: as the caller guarantees; both sums are exact as floats.
        unsafe {
            let [upper, lower] = [_mm512_cvtepi32_ps(upper), _mm512_cvtepi32_ps(lower)];
            _mm512_fmadd_ps(upper, _mm512_set1_ps(256.0), lower)
        }
    }
}

/// 1 and -1: the factors of lanes in sums and differences of lanes at distances of 1, 2, 4 and 8.
static SIGNS: [[f32; BLOCK_TOKENS]; 4] = [signs(1), signs(2), signs(4), signs(8)];

const fn signs(distance: usize) -> [f32; BLOCK_TOKENS] {
    let mut signs = [1.0; BLOCK_TOKENS];
    let mut lane = 0;
    while lane < BLOCK_TOKENS {
        if lane & distance != 0 {
            signs[lane] = -1.0;
        }
        lane += 1;
    }
    signs
}
