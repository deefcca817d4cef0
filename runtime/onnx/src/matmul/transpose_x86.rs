//! Transposition of words of four bytes with AVX-512 and AVX2, for the packing of weights.

use std::arch::x86_64::{
    __m256i, __m512i, _mm256_cmpgt_epi32, _mm256_maskload_epi32, _mm256_permute2x128_si256,
    _mm256_set1_epi32, _mm256_setr_epi32, _mm256_setzero_si256, _mm256_storeu_si256, _mm256_unpackhi_epi32,
    _mm256_unpackhi_epi64, _mm256_unpacklo_epi32, _mm256_unpacklo_epi64, _mm512_maskz_loadu_epi32,
    _mm512_setzero_si512, _mm512_shuffle_i32x4, _mm512_storeu_epi32, _mm512_unpackhi_epi32,
    _mm512_unpackhi_epi64, _mm512_unpacklo_epi32, _mm512_unpacklo_epi64,
};

use crate::matmul::LANES;
use crate::matmul::operands::{WordColumns, WordLine};

/// Lays words side by side.
///
/// # Safety
/// The processor has AVX-512; as for
/// [`MatMulKernels::transpose`](crate::matmul::kernels::MatMulKernels::transpose).
#[target_feature(enable = "avx512f,avx512bw")]
pub(crate) unsafe fn transpose_avx512(source: WordColumns, start: usize) -> [WordLine; LANES] {
    let count = source.length.saturating_sub(start);
    let mask = if count >= LANES {
        0xffff
    } else {
        (1u16 << count) - 1
    };
    let mut words = [_mm512_setzero_si512(); LANES];
    for (column, words) in words.iter_mut().enumerate().take(source.columns) {
        // SAFETY: lanes beyond the column's end are not read.
        *words = unsafe { _mm512_maskz_loadu_epi32(mask, source.first.add(column * source.length + start)) };
    }
    let columns = transposed_16(&words);
    let mut lines = [[0; LANES]; LANES];
    for at in 0..LANES {
        // SAFETY: a line is as wide as a register.
        unsafe { _mm512_storeu_epi32(lines[at].as_mut_ptr(), columns[at]) };
    }
    lines
}

/// Sixteen registers of sixteen words, the other way round: first within pairs and fours of registers, then by quarters.
///
/// Loops and not iterators: a closure of the standard library's can't hold registers of this width.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn transposed_16(rows: &[__m512i; LANES]) -> [__m512i; LANES] {
    const EVEN_LANES: i32 = 0b1000_1000;
    const ODD_LANES: i32 = 0b1101_1101;
    let mut pairs = *rows;
    for at in (0..LANES).step_by(2) {
        pairs[at] = _mm512_unpacklo_epi32(rows[at], rows[at + 1]);
        pairs[at + 1] = _mm512_unpackhi_epi32(rows[at], rows[at + 1]);
    }
    // The quarter `q` of `fours[4 * f + c]` holds column `4 * q + c` of the rows from `4 * f`.
    let mut fours = *rows;
    for at in (0..LANES).step_by(4) {
        fours[at] = _mm512_unpacklo_epi64(pairs[at], pairs[at + 2]);
        fours[at + 1] = _mm512_unpackhi_epi64(pairs[at], pairs[at + 2]);
        fours[at + 2] = _mm512_unpacklo_epi64(pairs[at + 1], pairs[at + 3]);
        fours[at + 3] = _mm512_unpackhi_epi64(pairs[at + 1], pairs[at + 3]);
    }
    let mut columns = *rows;
    for at in 0..4 {
        let even = _mm512_shuffle_i32x4::<EVEN_LANES>(fours[at], fours[4 + at]);
        let odd = _mm512_shuffle_i32x4::<ODD_LANES>(fours[at], fours[4 + at]);
        let even_below = _mm512_shuffle_i32x4::<EVEN_LANES>(fours[8 + at], fours[12 + at]);
        let odd_below = _mm512_shuffle_i32x4::<ODD_LANES>(fours[8 + at], fours[12 + at]);
        columns[at] = _mm512_shuffle_i32x4::<EVEN_LANES>(even, even_below);
        columns[4 + at] = _mm512_shuffle_i32x4::<EVEN_LANES>(odd, odd_below);
        columns[8 + at] = _mm512_shuffle_i32x4::<ODD_LANES>(even, even_below);
        columns[12 + at] = _mm512_shuffle_i32x4::<ODD_LANES>(odd, odd_below);
    }
    columns
}

/// Lays words side by side: in squares of eight words and columns.
///
/// # Safety
/// The processor has AVX2; as for [`MatMulKernels::transpose`](crate::matmul::kernels::MatMulKernels::transpose).
#[target_feature(enable = "avx2")]
pub(crate) unsafe fn transpose_avx2(source: WordColumns, start: usize) -> [WordLine; LANES] {
    const SIDE: usize = 8;
    let indices = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    let mut lines = [[0; LANES]; LANES];
    for (from, first) in [(0, 0), (0, SIDE), (SIDE, 0), (SIDE, SIDE)] {
        let left = source.length.saturating_sub(start + from);
        let left = i32::try_from(left).unwrap_or(i32::MAX);
        let mask = _mm256_cmpgt_epi32(_mm256_set1_epi32(left), indices);
        let mut square = [_mm256_setzero_si256(); SIDE];
        for (at, column) in square
            .iter_mut()
            .enumerate()
            .take(source.columns.saturating_sub(first))
        {
            let place = (first + at) * source.length + start + from;
            // SAFETY: lanes beyond the column's end are not read.
            *column = unsafe { _mm256_maskload_epi32(source.first.wrapping_add(place), mask) };
        }
        let columns = transposed_8(&square);
        for at in 0..SIDE {
            // SAFETY: half a line is as wide as a register.
            unsafe { _mm256_storeu_si256(lines[from + at].as_mut_ptr().add(first).cast(), columns[at]) };
        }
    }
    lines
}

/// Eight registers of eight words, the other way round.
#[inline]
#[target_feature(enable = "avx2")]
fn transposed_8(rows: &[__m256i; 8]) -> [__m256i; 8] {
    const LOW_HALVES: i32 = 0x20;
    const HIGH_HALVES: i32 = 0x31;
    let mut pairs = *rows;
    for at in (0..8).step_by(2) {
        pairs[at] = _mm256_unpacklo_epi32(rows[at], rows[at + 1]);
        pairs[at + 1] = _mm256_unpackhi_epi32(rows[at], rows[at + 1]);
    }
    // The half `h` of `fours[4 * f + c]` holds column `4 * h + c` of the rows from `4 * f`.
    let mut fours = *rows;
    for at in (0..8).step_by(4) {
        fours[at] = _mm256_unpacklo_epi64(pairs[at], pairs[at + 2]);
        fours[at + 1] = _mm256_unpackhi_epi64(pairs[at], pairs[at + 2]);
        fours[at + 2] = _mm256_unpacklo_epi64(pairs[at + 1], pairs[at + 3]);
        fours[at + 3] = _mm256_unpackhi_epi64(pairs[at + 1], pairs[at + 3]);
    }
    let mut columns = *rows;
    for at in 0..4 {
        columns[at] = _mm256_permute2x128_si256::<LOW_HALVES>(fours[at], fours[4 + at]);
        columns[4 + at] = _mm256_permute2x128_si256::<HIGH_HALVES>(fours[at], fours[4 + at]);
    }
    columns
}
