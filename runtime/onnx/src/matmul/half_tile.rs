//! One tile of the matmul with registers of 256 bits: two for each group of columns.
//!
//! Group by group within a block: its sums stay in the 16 registers, and its lines in the first cache.

use std::arch::x86_64::{
    __m128i, __m256, __m256i, _mm_loadl_epi64, _mm256_and_si256, _mm256_cmpeq_epi32, _mm256_cvtepi32_ps,
    _mm256_cvtepu8_epi32, _mm256_fmadd_ps, _mm256_load_ps, _mm256_madd_epi16, _mm256_maskload_ps,
    _mm256_maskstore_ps, _mm256_mul_ps, _mm256_set1_epi32, _mm256_set1_ps, _mm256_setr_epi32,
    _mm256_setzero_ps, _mm256_setzero_si256, _mm256_sub_epi32,
};

use crate::matmul::LANES;
use crate::matmul::group_words::GroupWords;
use crate::matmul::operands::{LINE_BYTES, Tile};

/// Registers of a group of columns.
pub(super) const HALVES: usize = 2;
/// Columns of a register.
const HALF_LANES: usize = LANES / HALVES;

/// Sums of a block's products for `ROWS` rows and one group of columns.
pub(super) type GroupSums<const ROWS: usize> = [[__m256i; HALVES]; ROWS];

/// A way to multiply bytes with registers of 256 bits.
pub(super) trait HalfProducts {
    /// What the weights of words of `lines` lines are lowered by before they are multiplied.
    fn offset(lines: usize) -> i32;

    /// Adds the products of a group's words.
    ///
    /// # Safety
    /// The processor has the instruction set; the words point to what their fields say.
    unsafe fn add<const ROWS: usize, const LINES: usize>(words: &GroupWords, sums: &mut GroupSums<ROWS>);
}

/// Computes `ROWS` rows of `GROUPS` groups of columns, of weights whose words are `LINES` lines.
///
/// # Safety
/// The processor has AVX2, FMA and what `P` needs; as for
/// [`MatMulKernels::tile`](crate::matmul::kernels::MatMulKernels::tile).
#[allow(
    clippy::needless_range_loop,
    reason = "indices into arrays of registers, which the compiler unrolls"
)]
#[allow(clippy::cast_ptr_alignment, reason = "weights begin at cache lines")]
#[inline(always)]
pub(super) unsafe fn compute<P: HalfProducts, const ROWS: usize, const GROUPS: usize, const LINES: usize>(
    tile: &Tile,
) {
    let mut sums = [[[zero_ps(); HALVES]; ROWS]; GROUPS];
    // SAFETY: the fields of `tile` point to `tile.blocks` blocks of `tile.words` words each; lanes outside of the output are
    // neither read nor written.
    unsafe {
        if tile.add {
            for group in 0..GROUPS {
                for half in 0..HALVES {
                    let mask = mask(tile, group + 1 == GROUPS, half);
                    for row in 0..ROWS {
                        sums[group][row][half] = _mm256_maskload_ps(out(tile, row, group, half), mask);
                    }
                }
            }
        }
        let words_bytes = tile.words * LINES * GROUPS * LINE_BYTES;
        let mut weights = tile.weights;
        let mut quants = tile.quants;
        for block in 0..tile.blocks {
            for group in 0..GROUPS {
                let mut whole = zeros::<P, ROWS, LINES>(tile, block, group);
                let words = GroupWords::of::<GROUPS>(tile, group, weights, quants);
                P::add::<ROWS, LINES>(&words, &mut whole);
                let scales = weights.add(words_bytes + group * LINE_BYTES).cast::<f32>();
                for half in 0..HALVES {
                    let scales = _mm256_load_ps(scales.add(half * HALF_LANES));
                    for row in 0..ROWS {
                        let scale =
                            _mm256_mul_ps(scales, _mm256_set1_ps(*tile.scales.add(block * ROWS + row)));
                        let sum = &mut sums[group][row][half];
                        *sum = _mm256_fmadd_ps(_mm256_cvtepi32_ps(whole[row][half]), scale, *sum);
                    }
                }
            }
            weights = weights.add(words_bytes + GROUPS * LINE_BYTES);
            quants = quants.add(2 * ROWS * tile.words);
        }
        for group in 0..GROUPS {
            for half in 0..HALVES {
                let mask = mask(tile, group + 1 == GROUPS, half);
                for row in 0..ROWS {
                    _mm256_maskstore_ps(out(tile, row, group, half), mask, sums[group][row][half]);
                }
            }
        }
    }
}

/// The sums of a block before its products: the weights are unsigned, and the zero points' share of the row's sum is
/// subtracted first.
///
/// # Safety
/// As for [`compute`].
#[inline(always)]
#[allow(clippy::needless_range_loop, reason = "indices into arrays of registers")]
#[allow(clippy::cast_ptr_alignment, reason = "zero points are loaded unaligned")]
unsafe fn zeros<P: HalfProducts, const ROWS: usize, const LINES: usize>(
    tile: &Tile,
    block: usize,
    group: usize,
) -> GroupSums<ROWS> {
    // SAFETY: as the caller guarantees.
    unsafe {
        let mut sums = [[_mm256_setzero_si256(); HALVES]; ROWS];
        for half in 0..HALVES {
            let zeros = tile
                .zeros
                .add(block * tile.zeros_step + group * LANES + half * HALF_LANES);
            let zeros = _mm256_cvtepu8_epi32(_mm_loadl_epi64(zeros.cast::<__m128i>()));
            let zeros = _mm256_sub_epi32(zeros, _mm256_set1_epi32(P::offset(LINES)));
            for row in 0..ROWS {
                let sum = _mm256_set1_epi32(*tile.sums.add(block * ROWS + row));
                // Both fit 16 bits, and the upper halves of the zero points are 0.
                sums[row][half] = _mm256_madd_epi16(zeros, sum);
            }
        }
        sums
    }
}

#[inline(always)]
fn zero_ps() -> __m256 {
    // SAFETY: only called by code for processors with AVX2.
    unsafe { _mm256_setzero_ps() }
}

#[inline(always)]
fn out(tile: &Tile, row: usize, group: usize, half: usize) -> *mut f32 {
    tile.out
        .wrapping_add(row * tile.stride + group * LANES + half * HALF_LANES)
}

/// The columns of half a group that the output has.
///
/// # Safety
/// The processor has AVX2.
#[inline(always)]
unsafe fn mask(tile: &Tile, is_last: bool, half: usize) -> __m256i {
    let mask = if is_last {
        i32::from(tile.mask) >> (half * HALF_LANES)
    } else {
        0xff
    };
    // SAFETY: as the caller guarantees.
    unsafe {
        let bits = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
        _mm256_cmpeq_epi32(_mm256_and_si256(_mm256_set1_epi32(mask), bits), bits)
    }
}
