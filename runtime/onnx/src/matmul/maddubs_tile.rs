//! Products of bytes with AVX2: pairs are added in 16 bits, then in 32.

use std::arch::x86_64::{
    __m256i, _mm256_abs_epi8, _mm256_add_epi16, _mm256_add_epi32, _mm256_and_si256, _mm256_load_si256,
    _mm256_madd_epi16, _mm256_maddubs_epi16, _mm256_set1_epi8, _mm256_set1_epi16, _mm256_set1_epi32,
    _mm256_sign_epi8, _mm256_srli_epi16, _mm256_xor_si256,
};

use super::half_tile::{GroupSums, GroupWords, HALVES, HalfProducts, compute};
use crate::matmul::operands::WeightBits;
use crate::matmul::operands::{Tile, TileForm};

/// Computes a tile of any form.
///
/// # Safety
/// As for [`MatMulKernels::tile`](crate::matmul::kernels::MatMulKernels::tile); the processor has AVX2 and FMA.
pub(crate) unsafe fn tile(form: TileForm, tile: &Tile) {
    // SAFETY: the caller's guarantee is passed on.
    unsafe {
        match form.bits {
            WeightBits::Four => by_form!(compute_avx2, 1, form, tile; 1 2 3 4 5; 6),
            WeightBits::Eight => by_form!(compute_avx2, 2, form, tile; 1 2 3 4 5; 6),
        }
    }
}

#[target_feature(enable = "avx2,fma")]
unsafe fn compute_avx2<const ROWS: usize, const GROUPS: usize, const LINES: usize>(tile: &Tile) {
    // SAFETY: as the caller guarantees.
    unsafe { compute::<Maddubs, ROWS, GROUPS, LINES>(tile) };
}

/// `vpmaddubsw`: an unsigned byte times a signed one, pairs of products added in 16 bits with saturation.
enum Maddubs {}

/// The stored value of an eight-bit weight of 0.
const EIGHT_BIT_ZERO: u8 = 128;

impl HalfProducts for Maddubs {
    fn offset(lines: usize) -> i32 {
        if lines == 1 { 0 } else { i32::from(EIGHT_BIT_ZERO) }
    }

    #[inline(always)]
    unsafe fn add<const ROWS: usize, const LINES: usize>(words: &GroupWords, sums: &mut GroupSums<ROWS>) {
        for half in 0..HALVES {
            // SAFETY: as the caller guarantees; words are even in number, for blocks are multiples of 16 values.
            unsafe {
                if LINES == 1 {
                    for pair in 0..words.count / 2 {
                        add_nibbles(words, pair, half, sums);
                    }
                } else {
                    for line in 0..2 * words.count {
                        add_bytes(words, line, half, sums);
                    }
                }
            }
        }
    }
}

/// Adds two words of four-bit weights. Four products of two pairs each fit 16 bits: 4 * 2 * 15 * 127 = 15,240.
///
/// # Safety
/// As for [`HalfProducts::add`].
#[inline(always)]
#[allow(clippy::needless_range_loop, reason = "indices into arrays of registers")]
unsafe fn add_nibbles<const ROWS: usize>(
    words: &GroupWords,
    pair: usize,
    half: usize,
    sums: &mut GroupSums<ROWS>,
) {
    // SAFETY: as the caller guarantees.
    unsafe {
        let low = _mm256_set1_epi8(15);
        let mut weights = [low; 4];
        for word in 0..2 {
            let bytes = load(words, 2 * pair + word, half);
            weights[2 * word] = _mm256_and_si256(bytes, low);
            weights[2 * word + 1] = _mm256_and_si256(_mm256_srli_epi16::<4>(bytes), low);
        }
        let quants = words.quants.add(4 * pair * ROWS);
        for row in 0..ROWS {
            let mut products = [low; 4];
            for at in 0..4 {
                let value = _mm256_set1_epi32(quants.add(at * ROWS + row).read());
                products[at] = _mm256_maddubs_epi16(weights[at], value);
            }
            let first = _mm256_add_epi16(products[0], products[1]);
            let second = _mm256_add_epi16(products[2], products[3]);
            let total = _mm256_madd_epi16(_mm256_add_epi16(first, second), _mm256_set1_epi16(1));
            sums[row][half] = _mm256_add_epi32(sums[row][half], total);
        }
    }
}

/// Adds a line of eight-bit weights. Their magnitudes are multiplied by values that have taken on their signs: an unsigned
/// weight of up to 255 would saturate, while 2 * 128 * 127 = 32,512 fits 16 bits.
///
/// # Safety
/// As for [`HalfProducts::add`].
#[inline(always)]
#[allow(clippy::needless_range_loop, reason = "indices into arrays of registers")]
unsafe fn add_bytes<const ROWS: usize>(
    words: &GroupWords,
    line: usize,
    half: usize,
    sums: &mut GroupSums<ROWS>,
) {
    // SAFETY: as the caller guarantees.
    unsafe {
        let zero = _mm256_set1_epi8(EIGHT_BIT_ZERO.cast_signed());
        let weights = _mm256_xor_si256(load(words, line, half), zero);
        let magnitudes = _mm256_abs_epi8(weights);
        for row in 0..ROWS {
            let quants = _mm256_set1_epi32(words.quants.add(line * ROWS + row).read());
            let products = _mm256_maddubs_epi16(magnitudes, _mm256_sign_epi8(quants, weights));
            let total = _mm256_madd_epi16(products, _mm256_set1_epi16(1));
            sums[row][half] = _mm256_add_epi32(sums[row][half], total);
        }
    }
}

/// Half of a line.
#[inline(always)]
#[allow(clippy::cast_ptr_alignment, reason = "weights begin at cache lines")]
unsafe fn load(words: &GroupWords, line: usize, half: usize) -> __m256i {
    // SAFETY: as the caller guarantees; lines begin at multiples of 64 bytes.
    unsafe { _mm256_load_si256(words.line(line, half == 0).cast::<__m256i>().add(half)) }
}
