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
}
