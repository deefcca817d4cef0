//! Products of bytes with dot products in registers of 256 bits: one source for AVX-VNNI (VEX) and AVX-512VL's form (EVEX).

use std::arch::x86_64::{
    __m256i, _mm256_and_si256, _mm256_dpbusd_avx_epi32, _mm256_dpbusd_epi32, _mm256_load_si256,
    _mm256_set1_epi8, _mm256_set1_epi32, _mm256_srli_epi16,
};
use std::marker::PhantomData;

use super::half_tile::{GroupSums, HALVES, HalfProducts, compute};
use crate::matmul::group_words::GroupWords;
use crate::matmul::operands::Tile;

macro_rules! by_encoding {
    ($tile:ident, $compute:ident, $encoding:ident, $dot:ident, $features:literal) => {
        tile_entry!(
            $tile,
            $compute,
            "AVX2, FMA and this encoding of the dot product."
        );

        #[target_feature(enable = $features)]
        unsafe fn $compute<const ROWS: usize, const GROUPS: usize, const LINES: usize>(tile: &Tile) {
            // SAFETY: as the caller guarantees.
            unsafe { compute::<DotProducts<$encoding>, ROWS, GROUPS, LINES>(tile) };
        }

        enum $encoding {}

        impl DotProduct for $encoding {
            #[inline(always)]
            unsafe fn add(sum: __m256i, weights: __m256i, quants: __m256i) -> __m256i {
                // SAFETY: as the caller guarantees.
                unsafe { $dot(sum, weights, quants) }
            }
        }
    };
}

by_encoding!(
    tile_evex,
    compute_evex,
    Evex,
    _mm256_dpbusd_epi32,
    "avx2,fma,avx512f,avx512vl,avx512vnni"
);
by_encoding!(
    tile_vex,
    compute_vex,
    Vex,
    _mm256_dpbusd_avx_epi32,
    "avx2,fma,avxvnni"
);

/// `vpdpbusd`: four unsigned bytes times four signed ones, added to each 32-bit lane.
trait DotProduct {
    /// # Safety
    /// The processor has the encoding.
    unsafe fn add(sum: __m256i, weights: __m256i, quants: __m256i) -> __m256i;
}

struct DotProducts<D>(PhantomData<D>);

impl<D: DotProduct> HalfProducts for DotProducts<D> {
    fn offset(_lines: usize) -> i32 {
        0
    }

    #[inline(always)]
    #[allow(clippy::needless_range_loop, reason = "indices into arrays of registers")]
    #[allow(clippy::cast_ptr_alignment, reason = "weights begin at cache lines")]
    unsafe fn add<const ROWS: usize, const LINES: usize>(words: &GroupWords, sums: &mut GroupSums<ROWS>) {
        // SAFETY: as the caller guarantees; lines begin at multiples of 64 bytes.
        unsafe {
            let low = _mm256_set1_epi8(15);
            let mut quants = words.quants;
            for word in 0..words.count {
                for parity in 0..2 {
                    let line = word * LINES + parity % LINES;
                    if parity < LINES {
                        words.prefetch(line);
                    }
                    let line = words.line(line).cast::<__m256i>();
                    let mut weights = [_mm256_load_si256(line), _mm256_load_si256(line.add(1))];
                    for half in 0..HALVES {
                        if LINES == 1 && parity == 1 {
                            weights[half] = _mm256_srli_epi16::<4>(weights[half]);
                        }
                        if LINES == 1 {
                            weights[half] = _mm256_and_si256(weights[half], low);
                        }
                    }
                    for row in 0..ROWS {
                        let value = _mm256_set1_epi32(quants.add(row).read());
                        for half in 0..HALVES {
                            sums[row][half] = D::add(sums[row][half], weights[half], value);
                        }
                    }
                    quants = quants.add(ROWS);
                }
            }
        }
    }
}
