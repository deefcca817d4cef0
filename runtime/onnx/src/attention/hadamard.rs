//! The Walsh-Hadamard transform of vectors, in parts of 32 values, or of 16 where 32 does not divide the vector.
//!
//! It is orthonormal and its own inverse: products of two transformed vectors are those of the vectors. A few large values,
//! as keys have them, are spread over their part, so that rounding to 8 bits with one scale for them loses less
//! (QuaRot: Ashkboos et al., arXiv 2404.00456).

use super::layout::{BLOCK_TOKENS, key_part};
use super::vectors::Vector;

/// The values that [`Vector::mix`] transforms.
const MIXED: usize = BLOCK_TOKENS;

/// Transforms a vector whose length 16 divides, in place.
///
/// # Safety
/// The processor has the instruction set.
#[inline(always)]
pub(crate) unsafe fn transform<V: Vector>(vector: &mut [f32]) {
    let wide = key_part(vector.len()) == 2 * MIXED;
    let factor = if wide { 32f32 } else { 16f32 }.sqrt().recip();
    let part = if wide { 2 * MIXED } else { MIXED };
    for values in vector.chunks_exact_mut(part) {
        let low = values.as_mut_ptr();
        // SAFETY: the chunk has 16 values or 32.
        unsafe {
            V::mix(low, factor);
            if wide {
                let high = low.add(MIXED);
                V::mix(high, factor);
                for at in (0..MIXED).step_by(V::LANES) {
                    let (a, b) = (V::load(low.add(at)), V::load(high.add(at)));
                    V::store(low.add(at), V::add(a, b));
                    V::store(high.add(at), V::sub(a, b));
                }
            }
        }
    }
}
