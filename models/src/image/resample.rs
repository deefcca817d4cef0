//! Antialiased resampling as Pillow does it, to the last bit: bilinear of bytes, and bicubic (a = -0.5) of floats.
//!
//! Libraries that are faster round the weights of bytes to fewer bits, and single pixels differ.

use std::borrow::Cow;

/// Red, green and blue.
const CHANNELS: usize = 3;
/// The bits behind the point of weights for bytes: those of 32 without a byte and two for sums beyond its range.
const WEIGHT_BITS: u32 = 32 - 8 - 2;
/// The parameter of the bicubic kernel.
const A: f64 = -0.5;

/// A kernel, and half of its width.
type Kernel = (fn(f64) -> f64, f64);

const BILINEAR: Kernel = (|x| (1.0 - x.abs()).max(0.0), 1.0);
const BICUBIC: Kernel = (bicubic_kernel, 2.0);

/// The weights of the source pixels that make one target pixel.
struct Weights<T> {
    first: usize,
    factors: Vec<T>,
}

/// Resamples `[height, width, 3]` bytes to `to_height` x `to_width`, bilinear.
pub(super) fn bilinear(source: &[u8], (width, height): (usize, usize), to: (usize, usize)) -> Vec<u8> {
    let (to_width, to_height) = to;
    // A direction whose size does not change is left alone.
    let narrow = if to_width == width {
        Cow::Borrowed(source)
    } else {
        Cow::Owned(narrowed(source, (width, height), to_width))
    };
    if to_height == height {
        return narrow.into_owned();
    }
    let line = to_width * CHANNELS;
    let mut target = Vec::with_capacity(to_height * line);
    let mut sums = vec![HALF; line];
    for weights in weights(height, to_height, BILINEAR).map(|weights| fixed(&weights)) {
        sums.fill(HALF);
        let rows = narrow.get(weights.first * line..).unwrap_or_default();
        for (row, factor) in rows.chunks_exact(line.max(1)).zip(&weights.factors) {
            for (sum, byte) in sums.iter_mut().zip(row) {
                *sum += i32::from(*byte) * factor;
            }
        }
        target.extend(sums.iter().map(|sum| byte(*sum)));
    }
    target
}

/// Resamples the rows of `[height, width, 3]` bytes to `to_width` pixels each.
fn narrowed(source: &[u8], (width, height): (usize, usize), to_width: usize) -> Vec<u8> {
    let columns: Vec<_> = weights(width, to_width, BILINEAR)
        .map(|weights| fixed(&weights))
        .collect();
    let mut narrow = Vec::with_capacity(height * to_width * CHANNELS);
    for row in source.chunks_exact(width.max(1) * CHANNELS) {
        for weights in &columns {
            narrow.extend(weights.pixel(row));
        }
    }
    narrow
}

impl Weights<i32> {
    /// The pixel that they make of a row.
    fn pixel(&self, row: &[u8]) -> [u8; CHANNELS] {
        let pixels = row.get(self.first * CHANNELS..).unwrap_or_default();
        let mut sums = [HALF; CHANNELS];
        for (pixel, factor) in pixels.chunks_exact(CHANNELS).zip(&self.factors) {
            for (sum, byte) in sums.iter_mut().zip(pixel) {
                *sum += i32::from(*byte) * factor;
            }
        }
        sums.map(byte)
    }
}

/// Resamples `[height, width]` floats to `to` x `to`, bicubic.
#[expect(clippy::cast_possible_truncation, reason = "the result has 32 bits")]
pub(super) fn bicubic(source: &[f32], (width, height): (usize, usize), to: usize) -> Vec<f32> {
    let columns: Vec<_> = weights(width, to, BICUBIC).collect();
    let mut narrow = Vec::with_capacity(height * to);
    for row in source.chunks_exact(width.max(1)) {
        narrow.extend(columns.iter().map(|weights| {
            let values = row.get(weights.first..).unwrap_or_default();
            let products = values.iter().zip(&weights.factors);
            products
                .map(|(value, factor)| f64::from(*value) * factor)
                .sum::<f64>() as f32
        }));
    }
    let mut target = Vec::with_capacity(to * to);
    let mut sums = vec![0.0; to];
    for weights in weights(height, to, BICUBIC) {
        sums.fill(0.0);
        let rows = narrow.get(weights.first * to..).unwrap_or_default();
        for (row, factor) in rows.chunks_exact(to.max(1)).zip(&weights.factors) {
            for (sum, value) in sums.iter_mut().zip(row) {
                *sum += f64::from(*value) * factor;
            }
        }
        target.extend(sums.iter().map(|sum| *sum as f32));
    }
    target
}

#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "sides of pictures are small, and positive"
)]
fn weights(from: usize, to: usize, (kernel, width): Kernel) -> impl Iterator<Item = Weights<f64>> {
    let scale = from as f64 / to as f64;
    let filter_scale = scale.max(1.0);
    let support = width * filter_scale;
    let of = move |target: usize| {
        let center = (target as f64 + 0.5) * scale;
        let first = (center - support + 0.5).max(0.0) as usize;
        let end = ((center + support + 0.5) as usize).min(from);
        let factor = |at: usize| kernel((at as f64 - center + 0.5) * (1.0 / filter_scale));
        let mut factors: Vec<f64> = (first..end).map(factor).collect();
        let sum: f64 = factors.iter().sum();
        if sum != 0.0 {
            for factor in &mut factors {
                *factor *= 1.0 / sum;
            }
        }
        Weights { first, factors }
    };
    (0..to).map(of)
}

/// Half of the last bit of a byte, so that sums are rounded.
const HALF: i32 = 1 << (WEIGHT_BITS - 1);

/// The weights as integers.
#[expect(clippy::cast_possible_truncation, reason = "weights are at most 1")]
fn fixed(weights: &Weights<f64>) -> Weights<i32> {
    let fixed = |factor: &f64| (factor * f64::from(1u32 << WEIGHT_BITS)).round() as i32;
    Weights {
        first: weights.first,
        factors: weights.factors.iter().map(fixed).collect(),
    }
}

fn byte(sum: i32) -> u8 {
    u8::try_from((sum >> WEIGHT_BITS).clamp(0, 255)).unwrap_or(u8::MAX)
}

fn bicubic_kernel(x: f64) -> f64 {
    let x = x.abs();
    if x < 1.0 {
        ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0
    } else if x < 2.0 {
        (((x - 5.0) * x + 8.0) * x - 4.0) * A
    } else {
        0.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plain_picture_stays_plain_at_any_size() {
        for (size, to) in [((1, 1), 4), ((7, 3), 4), ((4, 4), 4), ((40, 30), 7)] {
            let target = bicubic(&vec![0.25; size.0 * size.1], size, to);
            assert_eq!(target.len(), to * to);
            assert!(
                target.iter().all(|value| (value - 0.25).abs() < 1e-6),
                "{target:?}"
            );
            let bytes = bilinear(&vec![201; 3 * size.0 * size.1], size, (to, to + 1));
            assert_eq!(bytes, vec![201; 3 * to * (to + 1)]);
        }
    }

    #[test]
    fn at_its_own_size_nothing_changes() {
        let source: Vec<f32> = (0u8..25).map(f32::from).collect();
        assert_eq!(bicubic(&source, (5, 5), 5), source);
        let bytes: Vec<u8> = (0..75).collect();
        assert_eq!(bilinear(&bytes, (5, 5), (5, 5)), bytes);
    }
}
