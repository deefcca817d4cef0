//! The product of two numbers plus a third one, rounded once, to the same bits on every system.

/// `a * b + c`, rounded once.
///
/// Without the processor's own instruction [`f32::mul_add`] is the C library's `fmaf`. MinGW's rounds more than once: it is off by up
/// to 4 units in the last place, and kernels that use it would not agree with those that use the instruction.
#[inline]
pub(crate) fn mul_add(a: f32, b: f32, c: f32) -> f32 {
    if cfg!(all(windows, target_env = "gnu")) {
        by_double_precision(a, b, c)
    } else {
        a.mul_add(b, c)
    }
}

/// The product is exact in double precision. The sum is rounded to odd, after which rounding it once more, to single precision, gives
/// what a single rounding does.
fn by_double_precision(a: f32, b: f32, c: f32) -> f32 {
    let (product, third) = (f64::from(a) * f64::from(b), f64::from(c));
    let sum = product + third;
    // What rounding has taken from the sum, exactly.
    let added = sum - product;
    let lost = (product - (sum - added)) + (third - added);
    let mut bits = sum.to_bits();
    if sum.is_finite() && lost != 0.0 && bits & 1 == 0 {
        // The neighbour on the side of what was lost is odd.
        if (lost > 0.0) == (sum > 0.0) {
            bits += 1;
        } else {
            bits -= 1;
        }
    }
    #[allow(clippy::cast_possible_truncation, reason = "the rounding that is wanted")]
    let rounded = f64::from_bits(bits) as f32;
    rounded
}

#[cfg(test)]
mod tests {
    #![allow(
        clippy::cast_precision_loss,
        clippy::float_cmp,
        reason = "rounding is what is tested"
    )]

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(20_000))]

        /// Of whole numbers, whose sum of up to 62 bits is converted at once.
        #[test]
        fn whole_numbers_are_rounded_once(
            a in -(1i32 << 24)..=1 << 24,
            b in -(1i32 << 24)..=1 << 24,
            c in -(1i32 << 24)..=1 << 24,
            shift in 0..38,
        ) {
            let wide = i64::from(a) * i64::from(b) + (i64::from(c) << shift);
            let [a, b, c] = [a, b, c].map(|number| number as f32);
            let c = c * 2f32.powi(shift);
            prop_assert_eq!(by_double_precision(a, b, c), wide as f32);
            prop_assert_eq!(mul_add(a, b, c), wide as f32);
        }

        /// Of all bit patterns: subnormal numbers, infinities and what is no number among them.
        #[test]
        #[cfg(not(all(windows, target_env = "gnu")))]
        fn it_is_the_instruction_s(a in any::<u32>(), b in any::<u32>(), c in any::<u32>(), near in any::<bool>()) {
            let [a, b, mut c] = [a, b, c].map(f32::from_bits);
            if near {
                c = -(a * b) * (1.0 + f32::EPSILON * (c.to_bits() % 5) as f32);
            }
            let (got, expected) = (by_double_precision(a, b, c), a.mul_add(b, c));
            prop_assert!(got.to_bits() == expected.to_bits() || got.is_nan() && expected.is_nan(), "{got} {expected}");
        }
    }
}
