//! Quantisation of the input's rows to eight bits with AVX-512 and AVX2, with a scale for each block, as accuracy level 4 of
//! `MatMulNBits` has it.

use std::arch::x86_64::{
    __m128i, __m256i, _MM_HINT_T0, _mm_extract_epi32, _mm_prefetch, _mm_setr_epi8, _mm_shuffle_epi8,
    _mm256_add_epi32, _mm256_and_si256, _mm256_castps_si256, _mm256_cmpgt_epi32, _mm256_cvtps_epi32,
    _mm256_extract_epi32, _mm256_maskload_ps, _mm256_max_epi32, _mm256_mul_ps, _mm256_permutevar8x32_epi32,
    _mm256_set1_epi32, _mm256_set1_ps, _mm256_setr_epi8, _mm256_setr_epi32, _mm256_setzero_si256,
    _mm256_shuffle_epi8, _mm256_storeu_si256, _mm512_add_epi32, _mm512_and_si512, _mm512_castps_si512,
    _mm512_cvtepi32_epi8, _mm512_cvtps_epi32, _mm512_maskz_loadu_ps, _mm512_max_epi32, _mm512_mul_ps,
    _mm512_reduce_add_epi32, _mm512_reduce_max_epi32, _mm512_set1_epi32, _mm512_set1_ps,
    _mm512_setzero_si512,
};

use crate::matmul::LANES;
use crate::matmul::operands::PanelRow;

/// Values of a word.
const WORD: usize = 8;
/// The prefetch distance in values. Rows lie one behind the other, so that the next one's begin is prefetched too.
const PREFETCH_VALUES: usize = 512;

/// Quantises one row.
///
/// # Safety
/// The processor has AVX-512 with BW and VL; as for
/// [`MatMulKernels::quantise`](crate::matmul::kernels::MatMulKernels::quantise).
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
pub(crate) unsafe fn quantise_avx512(row: &[f32], block: usize, place: &PanelRow) {
    let magnitude = _mm512_set1_epi32(0x7fff_ffff);
    // The even values of eight, then the odd ones: in the weights, they are the low and the high halves of the bytes.
    let apart = _mm_setr_epi8(0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15);
    let load = |at: usize| {
        let left = row.len().saturating_sub(at);
        let mask = if left >= LANES { 0xffff } else { (1u16 << left) - 1 };
        // SAFETY: lanes beyond the row's end are not read.
        unsafe { _mm512_maskz_loadu_ps(mask, row.as_ptr().wrapping_add(at)) }
    };
    for index in 0..row.len().div_ceil(block) {
        let start = index * block;
        let mut largest = _mm512_setzero_si512();
        for at in (start..start + block).step_by(LANES) {
            // Magnitudes compare as whole numbers do, and NaN is the largest of them: so it isn't lost.
            let bits = _mm512_and_si512(_mm512_castps_si512(load(at)), magnitude);
            prefetch(row, at);
            largest = _mm512_max_epi32(largest, bits);
        }
        let largest = f32::from_bits(_mm512_reduce_max_epi32(largest).cast_unsigned());
        let inverse = _mm512_set1_ps(if largest == 0.0 { 0.0 } else { 127.0 / largest });
        let mut sum = _mm512_setzero_si512();
        for at in (start..start + block).step_by(LANES) {
            let whole = _mm512_cvtps_epi32(_mm512_mul_ps(load(at), inverse));
            sum = _mm512_add_epi32(sum, whole);
            let bytes: __m128i = _mm_shuffle_epi8(_mm512_cvtepi32_epi8(whole), apart);
            let word = at / WORD * 2;
            // SAFETY: the panel has room for whole blocks of this row, as the caller guarantees.
            unsafe {
                let to = place.quants.add(place.row);
                to.add(word * place.rows).write(_mm_extract_epi32::<0>(bytes));
                to.add((word + 1) * place.rows)
                    .write(_mm_extract_epi32::<1>(bytes));
                to.add((word + 2) * place.rows)
                    .write(_mm_extract_epi32::<2>(bytes));
                to.add((word + 3) * place.rows)
                    .write(_mm_extract_epi32::<3>(bytes));
            }
        }
        let at = index * place.rows + place.row;
        // SAFETY: as above.
        unsafe {
            place.scales.add(at).write(largest / 127.0);
            place
                .sums
                .add(at)
                .write(_mm512_reduce_add_epi32(sum).wrapping_neg());
        }
    }
}

/// Quantises one row.
///
/// # Safety
/// The processor has AVX2; as for [`MatMulKernels::quantise`](crate::matmul::kernels::MatMulKernels::quantise).
#[target_feature(enable = "avx2,fma")]
pub(crate) unsafe fn quantise_avx2(row: &[f32], block: usize, place: &PanelRow) {
    let magnitude = _mm256_set1_epi32(0x7fff_ffff);
    let lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    let even_odd = _mm256_setr_epi32(0, 2, 4, 6, 1, 3, 5, 7);
    // The lowest byte of each lane; the upper ones, of what is no number, are dropped as AVX-512 does.
    let low_bytes = _mm256_setr_epi8(
        0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, 0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1,
        -1, -1, -1, -1, -1,
    );
    let load = |at: usize| {
        let left = i32::try_from(row.len().saturating_sub(at)).unwrap_or(i32::MAX);
        let mask = _mm256_cmpgt_epi32(_mm256_set1_epi32(left), lanes);
        // SAFETY: lanes beyond the row's end are not read.
        unsafe { _mm256_maskload_ps(row.as_ptr().wrapping_add(at), mask) }
    };
    for index in 0..row.len().div_ceil(block) {
        let start = index * block;
        let mut largest = _mm256_setzero_si256();
        for at in (start..start + block).step_by(WORD) {
            // As with AVX-512.
            let bits = _mm256_and_si256(_mm256_castps_si256(load(at)), magnitude);
            prefetch(row, at);
            largest = _mm256_max_epi32(largest, bits);
        }
        let largest = lanes_of(largest).into_iter().max();
        let largest = f32::from_bits(largest.unwrap_or(0).cast_unsigned());
        let inverse = _mm256_set1_ps(if largest == 0.0 { 0.0 } else { 127.0 / largest });
        let mut sum = _mm256_setzero_si256();
        for at in (start..start + block).step_by(WORD) {
            let whole = _mm256_cvtps_epi32(_mm256_mul_ps(load(at), inverse));
            sum = _mm256_add_epi32(sum, whole);
            let bytes = _mm256_shuffle_epi8(_mm256_permutevar8x32_epi32(whole, even_odd), low_bytes);
            let word = at / WORD * 2;
            // SAFETY: the panel has room for whole blocks of this row, as the caller guarantees.
            unsafe {
                let to = place.quants.add(place.row);
                to.add(word * place.rows).write(_mm256_extract_epi32::<0>(bytes));
                to.add((word + 1) * place.rows)
                    .write(_mm256_extract_epi32::<4>(bytes));
            }
        }
        let sum = lanes_of(sum).into_iter().fold(0, i32::wrapping_add);
        let at = index * place.rows + place.row;
        // SAFETY: as above.
        unsafe {
            place.scales.add(at).write(largest / 127.0);
            place.sums.add(at).write(sum.wrapping_neg());
        }
    }
}

/// Prefetches what is read [`PREFETCH_VALUES`] after the value `at`: the rows of a long prompt are no longer in the first two
/// caches.
#[inline(always)]
fn prefetch(row: &[f32], at: usize) {
    let ahead = row.as_ptr().wrapping_add(at + PREFETCH_VALUES);
    // SAFETY: a prefetch reads nothing: an invalid address is ignored.
    unsafe { _mm_prefetch::<_MM_HINT_T0>(ahead.cast::<i8>()) };
}

/// The lanes of a register.
#[target_feature(enable = "avx2")]
#[inline]
fn lanes_of(register: __m256i) -> [i32; 8] {
    let mut lanes = [0i32; 8];
    // SAFETY: the array is as wide as the register.
    unsafe { _mm256_storeu_si256(lanes.as_mut_ptr().cast(), register) };
    lanes
}
