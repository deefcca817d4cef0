//! The drawn image that an encoder is tried on.

use phi_edge_engine::ImagePixels;

/// Width and height of a crop of CLIP's encoders at 336 pixels, which Phi-3-vision's preprocessing makes.
const SIDE: usize = 336;

/// An image of two parts beside its global view: gradients, bars and noise, in the range of normalised pixels.
pub(super) fn trial_image() -> ImagePixels {
    let crops = 3;
    let mut state = 1u32;
    let mut noise = || {
        // Numerical Recipes' generator: nothing depends on its quality.
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        f32::from(state.to_be_bytes()[0]) / 255.0 - 0.5
    };
    let mut data = Vec::with_capacity(crops * 3 * SIDE * SIDE);
    for crop in 0u16..3 {
        for channel in 0u16..3 {
            for y in 0u16..336 {
                for x in 0u16..336 {
                    let gradient = f32::from(x * (channel + 1) % 336 + y) / 336.0 - 1.0;
                    let bar = if (x / 24 + y / 40 + crop) % 5 == 0 {
                        1.5
                    } else {
                        0.0
                    };
                    data.push(gradient + bar + 0.3 * noise());
                }
            }
        }
    }
    ImagePixels {
        data,
        crops,
        side: SIDE,
        grid: (1, 2),
    }
}

/// The relative error of `got`: the norm of the difference by that of `expected`.
pub(super) fn relative_error(got: &[f32], expected: &[f32]) -> f64 {
    if got.len() != expected.len() {
        return f64::INFINITY;
    }
    let square = |value: f32| f64::from(value) * f64::from(value);
    let difference: f64 = got.iter().zip(expected).map(|(a, b)| square(a - b)).sum();
    let norm: f64 = expected.iter().map(|value| square(*value)).sum();
    let error = (difference / norm).sqrt();
    if error.is_nan() { f64::INFINITY } else { error }
}
