//! A sum of doubles without rounding.

/// The magnitude beyond which parts are scaled down, so that no sum of doubles overflows.
const SCALING_THRESHOLD: f64 = f64::from_bits((1023 + 1000) << 52);
/// The scale of large sums: 2^-128, by which even 2^64 of the greatest doubles stay below [`SCALING_THRESHOLD`].
const SCALE_DOWN: f64 = f64::from_bits((1023 - 128) << 52);
const SCALE_UP: f64 = f64::from_bits((1023 + 128) << 52);

/// An exact sum (Shewchuk 1997, "Adaptive Precision Floating-Point Arithmetic"): it does not depend on the order of its
/// terms, so neither a restart nor the parts of which a window is put together change a mean.
#[derive(Debug, Clone, Default)]
pub(super) struct ExactSum {
    /// Doubles that do not overlap, ascending by magnitude; their sum is the sum. At most some forty, mostly one or two.
    parts: Vec<f64>,
    /// The parts are scaled by [`SCALE_DOWN`]. What lies 600 orders of magnitude below the greatest term is then lost.
    scaled: bool,
}

impl ExactSum {
    /// Adds a finite number.
    pub(super) fn add(&mut self, x: f64) {
        if x.abs() >= SCALING_THRESHOLD
            || self
                .parts
                .last()
                .is_some_and(|part| part.abs() >= SCALING_THRESHOLD)
        {
            self.scale();
        }
        self.add_part(if self.scaled { x * SCALE_DOWN } else { x });
    }

    /// Adds another sum.
    pub(super) fn merge(&mut self, other: &Self) {
        let large = |sum: &Self| {
            sum.parts
                .last()
                .is_some_and(|part| part.abs() >= SCALING_THRESHOLD)
        };
        if other.scaled || large(other) || large(self) {
            self.scale();
        }
        let factor = if self.scaled && !other.scaled {
            SCALE_DOWN
        } else {
            1.0
        };
        for part in &other.parts {
            self.add_part(part * factor);
        }
    }

    /// The sum divided by `count`. The quotient must lie within the doubles, as a mean does.
    pub(super) fn over(&self, count: u64) -> f64 {
        // Messages of one window are counted far below 2^53, where doubles count exactly.
        #[allow(clippy::cast_precision_loss)]
        let quotient = self.rounded() / count as f64;
        if self.scaled {
            quotient * SCALE_UP
        } else {
            quotient
        }
    }

    fn scale(&mut self) {
        if !self.scaled {
            self.scaled = true;
            for part in std::mem::take(&mut self.parts) {
                self.add_part(part * SCALE_DOWN);
            }
        }
    }

    fn add_part(&mut self, mut x: f64) {
        let mut kept = 0;
        for index in 0..self.parts.len() {
            let mut y = self.parts[index];
            if x.abs() < y.abs() {
                std::mem::swap(&mut x, &mut y);
            }
            let total = x + y;
            let lost = y - (total - x);
            if lost != 0.0 {
                self.parts[kept] = lost;
                kept += 1;
            }
            x = total;
        }
        self.parts.truncate(kept);
        if x != 0.0 {
            self.parts.push(x);
        }
    }

    /// The double that is nearest to the parts' sum; of two, the even one.
    fn rounded(&self) -> f64 {
        let mut parts = self.parts.iter().rev();
        let mut total = parts.next().copied().unwrap_or(0.0);
        let mut lost = 0.0;
        for part in parts.by_ref() {
            let before = total;
            total = before + part;
            lost = part - (total - before);
            if lost != 0.0 {
                break;
            }
        }
        // Halfway between two doubles, what is left decides.
        if parts.next().is_some_and(|part| (*part > 0.0) == (lost > 0.0)) && lost != 0.0 {
            let twice = lost * 2.0;
            let other = total + twice;
            if (other - total).to_bits() == twice.to_bits() {
                total = other;
            }
        }
        total
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::float_cmp, reason = "sums are exact")]

    use proptest::prelude::*;

    use super::*;

    fn of(numbers: &[f64]) -> ExactSum {
        let mut sum = ExactSum::default();
        for number in numbers {
            sum.add(*number);
        }
        sum
    }

    /// The mean by whole numbers: each double is a multiple of 2^-1074, so that their sum is one of 2,200 bits.
    fn exact_mean(numbers: &[f64]) -> f64 {
        const LIMBS: usize = 36;
        let mut total = [0_i128; LIMBS];
        for number in numbers {
            let bits = number.to_bits();
            let (exponent, fraction) = ((bits >> 52) & 0x7ff, bits & ((1 << 52) - 1));
            let (mantissa, shift) = if exponent == 0 {
                (fraction, 0)
            } else {
                (fraction | 1 << 52, exponent - 1)
            };
            let (limb, offset) = (usize::try_from(shift / 64).unwrap(), shift % 64);
            let wide = u128::from(mantissa) << offset;
            let sign = if number.is_sign_negative() { -1 } else { 1 };
            total[limb] += sign * i128::from(u64::try_from(wide & u128::from(u64::MAX)).unwrap());
            total[limb + 1] += sign * i128::from(u64::try_from(wide >> 64).unwrap());
        }
        let mut carry = 0_i128;
        for limb in &mut total {
            let value = *limb + carry;
            carry = value >> 64;
            *limb = value & i128::from(u64::MAX);
        }
        let negative = carry < 0;
        if negative {
            let mut carry = 1_i128;
            for limb in &mut total {
                let value = (i128::from(u64::MAX) - *limb) + carry;
                carry = value >> 64;
                *limb = value & i128::from(u64::MAX);
            }
        }
        // Divided limb by limb, so that the quotient of a sum beyond the doubles lies within them.
        let count = i128::try_from(numbers.len()).unwrap();
        let mut rest = 0_i128;
        let mut mean = 0.0_f64;
        for (index, limb) in total.iter().enumerate().rev() {
            let value = (rest << 64) | *limb;
            rest = value % count;
            let exponent = i32::try_from(index).unwrap() * 64 - 1074;
            #[allow(clippy::cast_precision_loss)]
            let digits = (value / count) as f64;
            // In two steps: neither factor is beyond the doubles.
            mean += digits * 2_f64.powi(exponent / 2) * 2_f64.powi(exponent - exponent / 2);
        }
        if negative { -mean } else { mean }
    }

    fn finite() -> impl Strategy<Value = f64> {
        prop_oneof![
            4 => -1e6..1e6_f64,
            2 => any::<f64>().prop_filter("finite", |x| x.is_finite()),
            2 => prop::sample::select(vec![1e308, -1e308, f64::MAX, f64::MIN, 1.0, -1.0, 1e16, 1e100, -1e100, 0.1]),
        ]
    }

    #[test]
    fn the_greatest_doubles_have_a_mean() {
        assert!((of(&[1e308, 1e308, -1e308]).over(3) / (1e308 / 3.0) - 1.0).abs() < 1e-15);
        assert_eq!(of(&[f64::MAX; 1000]).over(1000), f64::MAX);
        assert_eq!(of(&[f64::MAX, f64::MIN]).over(2), 0.0);
        assert_eq!(of(&[1e308, 1e308, 5.0, -1e308, -1e308]).over(5), 1.0);
    }

    #[test]
    fn what_cancels_leaves_what_does_not() {
        assert_eq!(of(&[1.0, 1e100, 1e30, -1e100, -1e30]).over(1), 1.0);
        assert_eq!(of(&[0.1; 10]).over(10), 0.1);
    }

    proptest! {
        #[test]
        fn means_are_exact_in_any_order(numbers in proptest::collection::vec(finite(), 1..60), at in any::<prop::sample::Index>()) {
            let count = numbers.len() as u64;
            let mean = of(&numbers).over(count);
            let expected = exact_mean(&numbers);
            let greatest = numbers.iter().fold(0.0_f64, |most, x| most.max(x.abs()));
            let near = (mean - expected).abs() <= expected.abs() * 1e-15 + greatest * 1e-300;
            prop_assert!(near, "{mean} for {expected}");
            let mut reversed = numbers.clone();
            reversed.reverse();
            let (left, right) = numbers.split_at(at.index(numbers.len()));
            let mut merged = of(right);
            merged.merge(&of(left));
            for other in [of(&reversed), merged] {
                let near = (other.over(count) - mean).abs() <= greatest * 1e-300;
                prop_assert!(near, "{} for {mean}", other.over(count));
            }
        }
    }
}
