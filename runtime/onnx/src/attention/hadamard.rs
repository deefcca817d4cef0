//! The Walsh-Hadamard transform of vectors, in parts of 32 values, or of 16 where 32 does not divide the vector.
//!
//! It is orthonormal and its own inverse: products of two transformed vectors are those of the vectors. A few large values,
//! as keys have them, are spread over their part, so that rounding to 8 bits with one scale for them loses less
//! (QuaRot: Ashkboos et al., arXiv 2404.00456).

use std::arch::x86_64::{
    __m512, _mm512_add_ps, _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_mul_ps, _mm512_permute_ps,
    _mm512_set1_ps, _mm512_setr_ps, _mm512_shuffle_f32x4, _mm512_storeu_ps, _mm512_sub_ps,
};

use super::LANES;
use super::layout::key_part;

/// Transforms a vector whose length 16 divides, in place.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
#[inline]
pub(crate) fn transform(vector: &mut [f32]) {
    let wide = key_part(vector.len()) == 2 * LANES;
    let factor = if wide { 32f32 } else { 16f32 }.sqrt().recip();
    let block = if wide { 2 * LANES } else { LANES };
    for values in vector.chunks_exact_mut(block) {
        let at = values.as_mut_ptr();
        // SAFETY: the chunk has one register or two.
        unsafe {
            let low = lanes(_mm512_loadu_ps(at), factor);
            if wide {
                let high = lanes(_mm512_loadu_ps(at.add(LANES)), factor);
                _mm512_storeu_ps(at, _mm512_add_ps(low, high));
                _mm512_storeu_ps(at.add(LANES), _mm512_sub_ps(low, high));
            } else {
                _mm512_storeu_ps(at, low);
            }
        }
    }
}

/// The transform of a register's lanes, times `factor`.
#[target_feature(enable = "avx512f")]
#[inline]
fn lanes(x: __m512, factor: f32) -> __m512 {
    let x = _mm512_mul_ps(x, _mm512_set1_ps(factor));
    let signs = |distance: usize| -> __m512 {
        let sign = |lane: usize| if lane & distance == 0 { 1.0 } else { -1.0 };
        _mm512_setr_ps(
            sign(0),
            sign(1),
            sign(2),
            sign(3),
            sign(4),
            sign(5),
            sign(6),
            sign(7),
            sign(8),
            sign(9),
            sign(10),
            sign(11),
            sign(12),
            sign(13),
            sign(14),
            sign(15),
        )
    };
    // Lanes at a distance of 1, 2, 4 and 8: the first becomes their sum, the second their difference.
    let x = _mm512_fmadd_ps(x, signs(1), _mm512_permute_ps::<0b10_11_00_01>(x));
    let x = _mm512_fmadd_ps(x, signs(2), _mm512_permute_ps::<0b01_00_11_10>(x));
    let x = _mm512_fmadd_ps(x, signs(4), _mm512_shuffle_f32x4::<0b10_11_00_01>(x, x));
    _mm512_fmadd_ps(x, signs(8), _mm512_shuffle_f32x4::<0b01_00_11_10>(x, x))
}
