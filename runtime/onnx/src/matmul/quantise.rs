//! Quantisation of the input's rows to eight bits, with a scale for each block, as accuracy level 4 of `MatMulNBits`
//! has it: the largest value of a block becomes 127.

use std::arch::x86_64::{
    __m128i, _mm_extract_epi32, _mm_setr_epi8, _mm_shuffle_epi8, _mm512_add_epi32, _mm512_and_si512,
    _mm512_castps_si512, _mm512_cvtepi32_epi8, _mm512_cvtps_epi32, _mm512_maskz_loadu_ps, _mm512_max_epi32,
    _mm512_mul_ps, _mm512_reduce_add_epi32, _mm512_reduce_max_epi32, _mm512_set1_epi32, _mm512_set1_ps,
    _mm512_setzero_si512,
};

use crate::matmul::LANES;

/// The destination of one row of a panel. A panel is a few rows that go through the matmul together.
pub(crate) struct PanelRow {
    /// The panel's values: by word, the even values of each row, then the odd ones, four bytes a row.
    pub(crate) quants: *mut i32,
    /// The panel's scales, by block and row.
    pub(crate) scales: *mut f32,
    /// The panel's negated sums of a block's values, by block and row.
    pub(crate) sums: *mut i32,
    /// Rows of the panel.
    pub(crate) rows: usize,
    /// The row within it.
    pub(crate) row: usize,
}

/// Quantises one row. Its last block is padded with zeros.
///
/// Sums of a block's whole values fit 16 bits: 256 of them at most, of 127 each.
///
/// # Safety
/// The processor has AVX-512 with BW and VL. `place` points to a panel of `place.rows` rows with room for `row.len()`
/// rounded up to whole blocks, and no other code reads or writes this row of it meanwhile. `block` is a multiple of 16.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
pub(crate) unsafe fn quantise(row: &[f32], block: usize, place: &PanelRow) {
    const WORD: usize = 8;
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
