//! The most products of bytes that a thread of this processor computes in a second: the measure of the kernels.

use std::arch::x86_64::{
    __m256i, __m512i, _mm256_add_epi16, _mm256_add_epi32, _mm256_dpbusd_avx_epi32, _mm256_dpbusd_epi32,
    _mm256_madd_epi16, _mm256_maddubs_epi16, _mm256_set1_epi8, _mm256_set1_epi16, _mm256_setzero_si256,
    _mm512_dpbusd_epi32, _mm512_set1_epi8, _mm512_setzero_si512,
};
use std::hint::black_box;

/// Sums that are added to in turn, each of which waits for itself alone: more than two units of four cycles keep busy.
const SUMS: usize = 12;

/// Products of one round of [`rounds_avx512`].
pub(super) const ROUND_AVX512: usize = SUMS * 64;
/// Products of one round of the functions with registers of 256 bits and dot products.
pub(super) const ROUND_VNNI256: usize = SUMS * 32;
/// Products of one round of [`rounds_avx2`].
pub(super) const ROUND_AVX2: usize = SUMS * 4 * 32;

/// # Safety
/// The processor has AVX-512 VNNI.
#[target_feature(enable = "avx512f,avx512vnni")]
pub(super) unsafe fn rounds_avx512(rounds: usize) {
    let (weights, values): (__m512i, __m512i) = black_box((_mm512_set1_epi8(3), _mm512_set1_epi8(5)));
    let mut sums = [_mm512_setzero_si512(); SUMS];
    for _ in 0..rounds {
        for sum in &mut sums {
            *sum = _mm512_dpbusd_epi32(*sum, weights, values);
        }
    }
    black_box(sums);
}

/// # Safety
/// The processor has VNNI of AVX-512VL.
#[target_feature(enable = "avx512f,avx512vl,avx512vnni")]
pub(super) unsafe fn rounds_vnni256_evex(rounds: usize) {
    let (weights, values): (__m256i, __m256i) = black_box((_mm256_set1_epi8(3), _mm256_set1_epi8(5)));
    let mut sums = [_mm256_setzero_si256(); SUMS];
    for _ in 0..rounds {
        for sum in &mut sums {
            *sum = _mm256_dpbusd_epi32(*sum, weights, values);
        }
    }
    black_box(sums);
}

/// # Safety
/// The processor has AVX-VNNI.
#[target_feature(enable = "avx2,avxvnni")]
pub(super) unsafe fn rounds_vnni256_vex(rounds: usize) {
    let (weights, values): (__m256i, __m256i) = black_box((_mm256_set1_epi8(3), _mm256_set1_epi8(5)));
    let mut sums = [_mm256_setzero_si256(); SUMS];
    for _ in 0..rounds {
        for sum in &mut sums {
            *sum = _mm256_dpbusd_avx_epi32(*sum, weights, values);
        }
    }
    black_box(sums);
}

/// Four products of pairs in 16 bits, then one sum in 32, as the kernel of weights of four bits has them.
///
/// # Safety
/// The processor has AVX2.
#[target_feature(enable = "avx2")]
pub(super) unsafe fn rounds_avx2(rounds: usize) {
    let (weights, values): (__m256i, __m256i) = black_box((_mm256_set1_epi8(3), _mm256_set1_epi8(5)));
    let mut sums = [_mm256_setzero_si256(); SUMS];
    for _ in 0..rounds {
        for sum in &mut sums {
            // Each product for itself, or the compiler computes one for all.
            let product = || _mm256_maddubs_epi16(black_box_register(weights), values);
            let pairs = [
                _mm256_add_epi16(product(), product()),
                _mm256_add_epi16(product(), product()),
            ];
            let total = _mm256_madd_epi16(_mm256_add_epi16(pairs[0], pairs[1]), _mm256_set1_epi16(1));
            *sum = _mm256_add_epi32(*sum, total);
        }
    }
    black_box(sums);
}

/// The same register, of which the compiler knows nothing any more; no instruction.
///
/// # Safety
/// The processor has AVX2.
#[target_feature(enable = "avx2")]
#[inline]
fn black_box_register(mut register: __m256i) -> __m256i {
    // Not `pure`: the compiler would take one product out of the loop.
    // SAFETY: no instruction: nothing is read or written.
    unsafe {
        std::arch::asm!("/* {0} */", inout(ymm_reg) register, options(nomem, nostack, preserves_flags))
    };
    register
}
