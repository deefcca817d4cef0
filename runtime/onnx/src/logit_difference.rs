//! The comparison of logits that should be equal.

/// The largest difference of two runs' logits.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct LogitDifference {
    /// The largest expected logit.
    pub(crate) largest: f32,
    /// The largest difference; NaN where any is.
    pub(crate) difference: f32,
}

impl LogitDifference {
    /// Compares logits; those of another number differ infinitely.
    pub(crate) fn of(got: &[f32], expected: &[f32]) -> Self {
        let largest = expected
            .iter()
            .fold(0_f32, |largest, value| largest.max(value.abs()));
        let differences = expected.iter().zip(got).map(|(a, b)| (a - b).abs());
        // NaN counts as the largest difference.
        let difference = differences.fold(0_f32, |most, d| if d.is_nan() || d > most { d } else { most });
        tracing::debug!(difference, largest, "Logits of a trial are compared.");
        let difference = if got.len() == expected.len() {
            difference
        } else {
            f32::INFINITY
        };
        Self { largest, difference }
    }

    /// Whether no logit differs by more than this share of the largest.
    pub(crate) fn is_within(self, share: f32) -> bool {
        self.difference <= share * self.largest
    }

    /// The share of vectors of `width` logits in which none differs by more than this share of the largest of all.
    pub(crate) fn agreeing(self, got: &[f32], expected: &[f32], width: usize, share: f32) -> f64 {
        if got.len() != expected.len() || width == 0 || expected.is_empty() {
            return 0.0;
        }
        let vectors = got.chunks(width).zip(expected.chunks(width));
        let count = vectors.len();
        let agree = vectors.filter(|(got, expected)| {
            let mut pairs = got.iter().zip(*expected);
            pairs.all(|(a, b)| (a - b).abs() <= share * self.largest)
        });
        #[allow(clippy::cast_precision_loss, reason = "some tens")]
        {
            agree.count() as f64 / count as f64
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logits_agree_within_a_share_of_the_largest() {
        let agree = |got: &[f32]| LogitDifference::of(got, &[10.0, -1.0]).is_within(0.03);
        assert!(agree(&[10.2, -1.2]));
        assert!(!agree(&[10.0, -1.4]));
        assert!(!agree(&[10.0, f32::NAN]));
        assert!(!agree(&[f32::NAN, -1.0]));
        assert!(!agree(&[10.0]));
    }

    #[test]
    fn vectors_agree_one_by_one() {
        let expected = [10.0, 0.0, 1.0, 2.0, 3.0, 4.0];
        let share = |got: &[f32]| LogitDifference::of(got, &expected).agreeing(got, &expected, 2, 0.03);
        let check = |got: &[f32], expected: f64| assert!((share(got) - expected).abs() < 1e-9, "{got:?}");
        check(&expected, 1.0);
        check(&[10.2, 0.0, 1.4, 2.0, 3.0, 4.0], 2.0 / 3.0);
        check(&[10.2, f32::NAN, 1.4, 2.0, 3.0, 4.0], 1.0 / 3.0);
        check(&expected[1..], 0.0);
    }
}
