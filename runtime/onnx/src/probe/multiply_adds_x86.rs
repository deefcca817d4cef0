//! Loops of the instructions that the kernels multiply bytes with, on registers alone.

use std::arch::x86_64::{
    __m256i, __m512i, _mm256_add_epi16, _mm256_add_epi32, _mm256_dpbusd_avx_epi32, _mm256_dpbusd_epi32,
    _mm256_madd_epi16, _mm256_maddubs_epi16, _mm256_set1_epi8, _mm256_set1_epi16, _mm256_setzero_si256,
    _mm512_dpbusd_epi32, _mm512_set1_epi8, _mm512_setzero_si512,
};
use std::hint::black_box;

use crate::isa::Isa;

/// Sums that do not depend on each other: more than the latency of a dot product takes, fewer than there are registers.
pub(super) const REGISTERS: usize = 10;
/// The products (`vpmaddubsw`) that the kernels of AVX2 add up in 16 bits before they widen them.
pub(super) const MADDUBS_A_SUM: usize = 4;

/// Dot products in registers of 512 bits.
pub(super) fn run_avx512(rounds: usize) {
    // SAFETY: a probe is made only where the processor has its instruction set.
    unsafe { avx512(rounds) };
}

/// Dot products in registers of 256 bits, in the encoding that the processor has.
pub(super) fn run_vnni256(rounds: usize) {
    if Isa::AvxVnni.has_evex_dot_products() {
        // SAFETY: the processor was asked.
        unsafe { vnni256_evex(rounds) };
    } else {
        // SAFETY: as for `run_avx512`.
        unsafe { vnni256_vex(rounds) };
    }
}

/// Products of AVX2.
pub(super) fn run_avx2(rounds: usize) {
    // SAFETY: as for `run_avx512`.
    unsafe { avx2(rounds) };
}

#[target_feature(enable = "avx512f,avx512vnni")]
unsafe fn avx512(rounds: usize) {
    let (a, b) = black_box((_mm512_set1_epi8(3), _mm512_set1_epi8(5)));
    let mut sums: [__m512i; REGISTERS] = black_box([_mm512_setzero_si512(); REGISTERS]);
    for _ in 0..rounds {
        for sum in &mut sums {
            *sum = _mm512_dpbusd_epi32(*sum, a, b);
        }
    }
    black_box(sums);
}

#[target_feature(enable = "avx2,avx512f,avx512vl,avx512vnni")]
unsafe fn vnni256_evex(rounds: usize) {
    let (a, b) = black_box((_mm256_set1_epi8(3), _mm256_set1_epi8(5)));
    let mut sums: [__m256i; REGISTERS] = black_box([_mm256_setzero_si256(); REGISTERS]);
    for _ in 0..rounds {
        for sum in &mut sums {
            *sum = _mm256_dpbusd_epi32(*sum, a, b);
        }
    }
    black_box(sums);
}

#[target_feature(enable = "avx2,avxvnni")]
unsafe fn vnni256_vex(rounds: usize) {
    let (a, b) = black_box((_mm256_set1_epi8(3), _mm256_set1_epi8(5)));
    let mut sums: [__m256i; REGISTERS] = black_box([_mm256_setzero_si256(); REGISTERS]);
    for _ in 0..rounds {
        for sum in &mut sums {
            *sum = _mm256_dpbusd_avx_epi32(*sum, a, b);
        }
    }
    black_box(sums);
}

#[target_feature(enable = "avx2")]
unsafe fn avx2(rounds: usize) {
    let weights: [__m256i; MADDUBS_A_SUM] = black_box([_mm256_set1_epi8(3); MADDUBS_A_SUM]);
    let ones = black_box(_mm256_set1_epi16(1));
    let mut sums: [__m256i; REGISTERS] = black_box([_mm256_setzero_si256(); REGISTERS]);
    for _ in 0..rounds {
        for sum in &mut sums {
            // Other values for each sum and round, or the products would be computed once.
            let quants = *sum;
            let [a, b, c, d] = weights.map(|weights| _mm256_maddubs_epi16(weights, quants));
            let products = _mm256_add_epi16(_mm256_add_epi16(a, b), _mm256_add_epi16(c, d));
            *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(products, ones));
        }
    }
    black_box(sums);
}
