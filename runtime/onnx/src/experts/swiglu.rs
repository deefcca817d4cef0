//! SwiGLU: values, gated by the sigmoid-weighted other half of a matmul's results.

use crate::exp2_series::EXP2_SERIES;

/// The constants of `QMoE`'s SwiGLU: `gate * sigmoid(alpha * gate) * (value + beta)`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct SwiGlu {
    pub(crate) alpha: f32,
    pub(crate) beta: f32,
}

impl SwiGlu {
    /// Computes it for a row of gates, followed by as many values; the results replace the gates.
    ///
    /// Multiplications and additions are apart and in one order, so that every processor gives the same bits.
    pub(crate) fn apply(self, row: &mut [f32]) {
        let (gates, values) = row.split_at_mut(row.len() / 2);
        for (gate, value) in gates.iter_mut().zip(values) {
            let sigmoid = 1.0 / (1.0 + exp(-self.alpha * *gate));
            *gate = *gate * sigmoid * (*value + self.beta);
        }
    }
}

/// e^x; of x beyond -86 to 86 that of about the bound.
#[inline]
fn exp(x: f32) -> f32 {
    /// Added to a float of less than 2^22, it leaves the nearest whole number in the lowest bits.
    const ROUND: f32 = 12_582_912.0;
    let x = (x * std::f32::consts::LOG2_E).clamp(-125.0, 125.0);
    let shifted = x + ROUND;
    let part = x - (shifted - ROUND);
    let mut sum = EXP2_SERIES[0];
    for factor in &EXP2_SERIES[1..] {
        sum = sum * part + factor;
    }
    sum = sum * part + 1.0;
    let power = shifted.to_bits().wrapping_sub(ROUND.to_bits());
    // 127 is the exponent of 1.
    sum * f32::from_bits(power.wrapping_add(127) << 23)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::cast_possible_truncation, clippy::cast_precision_loss)]

    use super::*;

    #[test]
    fn exp_is_that_of_the_library() {
        for at in -8600..=8600 {
            let x = at as f32 / 100.0;
            let expected = f64::from(x).exp();
            let error = (f64::from(exp(x)) - expected).abs() / expected;
            // A part of x that floats can't hold counts as often as x is large.
            assert!(error < 3e-7 + f64::from(x.abs()) * 1e-7, "{x}: {error}");
        }
        assert!(exp(-1e30) > 0.0 && exp(-1e30) < 1e-37 && exp(1e30).is_finite());
        assert!(exp(f32::NAN).is_nan());
        assert_eq!(exp(0.0).to_bits(), 1f32.to_bits());
    }

    #[test]
    fn values_are_gated() {
        let mut row = vec![0.0, 2.0, -3.0, f32::NAN, 100.0, 1.0, 5.0, 4.0, 1.0, -2.0];
        SwiGlu {
            alpha: 1.0,
            beta: 0.0,
        }
        .apply(&mut row);
        let silu = |gate: f64| gate / (1.0 + (-gate).exp());
        for (got, (gate, value)) in row.iter().zip([(0.0, 1.0), (2.0, 5.0), (-3.0, 4.0)]) {
            assert!((f64::from(*got) - silu(gate) * value).abs() < 1e-5, "{gate}");
        }
        assert!(row[3].is_nan());
        assert_eq!(row[4].to_bits(), (-200f32).to_bits());
        let mut row = [1.0, 1.0];
        SwiGlu {
            alpha: 1.702,
            beta: 1.0,
        }
        .apply(&mut row);
        assert!((f64::from(row[0]) - 2.0 / (1.0 + (-1.702f64).exp())).abs() < 1e-6);
    }
}
