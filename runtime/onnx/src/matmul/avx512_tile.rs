//! One tile of the matmul with AVX-512 VNNI: a panel of rows times a tile of columns, in registers.

use std::arch::x86_64::{
    __m128i, __m512i, _MM_HINT_T0, _mm_cvtsi32_si128, _mm_loadu_si128, _mm_prefetch, _mm512_and_si512,
    _mm512_cvtepi32_ps, _mm512_cvtepu8_epi32, _mm512_dpbusd_epi32, _mm512_dpwssd_epi32, _mm512_fmadd_ps,
    _mm512_load_ps, _mm512_load_si512, _mm512_mask_storeu_ps, _mm512_maskz_loadu_ps, _mm512_mul_ps,
    _mm512_set1_epi8, _mm512_set1_epi32, _mm512_set1_ps, _mm512_setzero_ps, _mm512_setzero_si512,
    _mm512_sll_epi32, _mm512_srli_epi32,
};

use crate::matmul::LANES;
use crate::matmul::operands::WeightBits;
use crate::matmul::operands::{Tile, TileForm};

/// Computes a tile of any form.
///
/// # Safety
/// As for [`MatMulKernels::tile`](crate::matmul::kernels::MatMulKernels::tile).
pub(crate) unsafe fn tile(form: TileForm, tile: &Tile) {
    // SAFETY: the caller's guarantee is passed on.
    unsafe {
        match form.bits {
            WeightBits::Four => by_form!(compute, 1, form, tile; 1 2 3 4 5 6 7; 8),
            WeightBits::Eight => by_form!(compute, 2, form, tile; 1 2 3 4 5 6 7; 8),
        }
    }
}

/// Computes `ROWS` rows of `GROUPS` groups of columns, of weights whose words are `LINES` lines.
///
/// A row's result depends on nothing but that row: blocks are summed up as whole numbers, exactly, and added in their
/// order by one operation each, whatever the number of rows and wherever the run of blocks is cut.
///
/// # Safety
/// The processor has AVX-512 with BW, VL and VNNI. All of `tile` points to what its fields say, and no other code writes or
/// reads the part of the output meanwhile.
#[allow(
    clippy::needless_range_loop,
    reason = "indices into arrays of registers, which the compiler unrolls"
)]
#[allow(
    clippy::cast_ptr_alignment,
    reason = "weights begin at cache lines; zero points are loaded unaligned"
)]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
#[inline]
unsafe fn compute<const ROWS: usize, const GROUPS: usize, const LINES: usize>(tile: &Tile) {
    const LINE_BYTES: usize = 64;
    let low = _mm512_set1_epi8(15);
    let mask = |group: usize| if group + 1 == GROUPS { tile.mask } else { 0xffff };
    let out = |row: usize, group: usize| tile.out.wrapping_add(row * tile.stride + group * LANES);
    let mut sums = [[_mm512_setzero_ps(); GROUPS]; ROWS];
    if tile.add {
        for row in 0..ROWS {
            for group in 0..GROUPS {
                // SAFETY: lanes outside of the output are not read.
                sums[row][group] = unsafe { _mm512_maskz_loadu_ps(mask(group), out(row, group)) };
            }
        }
    }
    // Zero points that are all the same are a power of two (8 or 128).
    // SAFETY: there is a zero point.
    let zero_shift = _mm_cvtsi32_si128(unsafe { *tile.zeros }.trailing_zeros().cast_signed());
    let mut weights = tile.weights;
    let mut quants = tile.quants;
    for block in 0..tile.blocks {
        let mut whole = [[_mm512_setzero_si512(); GROUPS]; ROWS];
        // SAFETY: the fields of `tile` point to `tile.blocks` blocks of `tile.words` words each; the order of reading is
        // that of packing.
        unsafe {
            // The weights are unsigned: the zero points' share of the row's sum is subtracted first.
            if tile.zeros_step == 0 {
                for row in 0..ROWS {
                    let sum = _mm512_set1_epi32(*tile.sums.add(block * ROWS + row));
                    whole[row] = [_mm512_sll_epi32(sum, zero_shift); GROUPS];
                }
            } else {
                for group in 0..GROUPS {
                    let zeros = tile.zeros.add(block * tile.zeros_step + group * LANES);
                    let zeros = _mm512_cvtepu8_epi32(_mm_loadu_si128(zeros.cast::<__m128i>()));
                    for row in 0..ROWS {
                        let sum = _mm512_set1_epi32(*tile.sums.add(block * ROWS + row));
                        whole[row][group] = _mm512_dpwssd_epi32(_mm512_setzero_si512(), zeros, sum);
                    }
                }
            }
            for _ in 0..tile.words {
                let mut even = [_mm512_setzero_si512(); GROUPS];
                let mut odd = even;
                for group in 0..GROUPS {
                    let word = weights.add(group * LINE_BYTES);
                    if tile.fetch[group] {
                        _mm_prefetch::<_MM_HINT_T0>(word.wrapping_add(tile.ahead).cast::<i8>());
                    }
                    let first = _mm512_load_si512(word.cast::<__m512i>());
                    if LINES == 1 {
                        even[group] = _mm512_and_si512(first, low);
                        odd[group] = _mm512_and_si512(_mm512_srli_epi32::<4>(first), low);
                    } else {
                        let second = word.add(GROUPS * LINE_BYTES);
                        if tile.fetch[group] {
                            _mm_prefetch::<_MM_HINT_T0>(second.wrapping_add(tile.ahead).cast::<i8>());
                        }
                        even[group] = first;
                        odd[group] = _mm512_load_si512(second.cast::<__m512i>());
                    }
                }
                for (half, values) in [even, odd].iter().enumerate() {
                    for row in 0..ROWS {
                        let quants = _mm512_set1_epi32(quants.add(half * ROWS + row).read());
                        for group in 0..GROUPS {
                            whole[row][group] = _mm512_dpbusd_epi32(whole[row][group], values[group], quants);
                        }
                    }
                }
                weights = weights.add(LINES * GROUPS * LINE_BYTES);
                quants = quants.add(2 * ROWS);
            }
            for group in 0..GROUPS {
                let scales = _mm512_load_ps(weights.add(group * LINE_BYTES).cast::<f32>());
                for row in 0..ROWS {
                    let scale = _mm512_mul_ps(scales, _mm512_set1_ps(*tile.scales.add(block * ROWS + row)));
                    sums[row][group] =
                        _mm512_fmadd_ps(_mm512_cvtepi32_ps(whole[row][group]), scale, sums[row][group]);
                }
            }
            weights = weights.add(GROUPS * LINE_BYTES);
        }
    }
    for row in 0..ROWS {
        for group in 0..GROUPS {
            // SAFETY: lanes outside of the output are not written.
            unsafe { _mm512_mask_storeu_ps(out(row, group), mask(group), sums[row][group]) };
        }
    }
}
