//! Products of bytes with AVX2: pairs are added in 16 bits, then in 32.

use std::arch::x86_64::{
    __m256i, _mm256_abs_epi8, _mm256_add_epi16, _mm256_add_epi32, _mm256_and_si256, _mm256_load_si256,
    _mm256_madd_epi16, _mm256_maddubs_epi16, _mm256_set1_epi8, _mm256_set1_epi16, _mm256_set1_epi32,
    _mm256_sign_epi8, _mm256_srli_epi16, _mm256_xor_si256,
};

use super::half_tile::{GroupSums, HALVES, HalfProducts, compute};
use crate::matmul::group_words::GroupWords;
use crate::matmul::operands::{Tile, WeightBits};

tile_entry!(tile, compute_avx2, "AVX2 and FMA.");

#[target_feature(enable = "avx2,fma")]
unsafe fn compute_avx2<const ROWS: usize, const GROUPS: usize, const LINES: usize>(tile: &Tile) {
    // SAFETY: as the caller guarantees.
    unsafe { compute::<Maddubs, ROWS, GROUPS, LINES>(tile) };
}

/// `vpmaddubsw`: an unsigned byte times a signed one, pairs of products added in 16 bits with saturation.
enum Maddubs {}

impl HalfProducts for Maddubs {
    fn offset(lines: usize) -> i32 {
        if lines == 1 {
            0
        } else {
            i32::from(WeightBits::Eight.zero())
        }
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
        let zero = _mm256_set1_epi8(WeightBits::Eight.zero().cast_signed());
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

/// Half of a line, which the first pass prefetches for later.
#[inline(always)]
#[allow(clippy::cast_ptr_alignment, reason = "weights begin at cache lines")]
unsafe fn load(words: &GroupWords, line: usize, half: usize) -> __m256i {
    if half == 0 {
        words.prefetch(line);
    }
    // SAFETY: as the caller guarantees; lines begin at multiples of 64 bytes.
    unsafe { _mm256_load_si256(words.line(line).cast::<__m256i>().add(half)) }
}
