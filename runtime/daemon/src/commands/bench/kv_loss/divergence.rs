//! The divergence of two sets of predictions for the same tokens.

use serde_json::{Value, json};

/// The least difference between the reference's two largest logits at which its prediction counts as decided. Below it
/// rounding alone exchanges the two, as it does for most predictions of random weights.
pub(super) const DECIDED_MARGIN: f32 = 0.1;

/// The divergence of predictions from reference predictions, over a number of positions.
#[derive(Debug, Default, Clone)]
pub(super) struct Divergence {
    /// The Kullback-Leibler divergence of each position, in nats.
    kl: Vec<f64>,
    /// Positions at which both predict the same token.
    same_top: usize,
    /// Positions at which the reference's margin exceeds [`DECIDED_MARGIN`].
    decided: usize,
    /// Those of them at which both predict the same token.
    decided_same_top: usize,
    /// The sum of squares of the logits' differences.
    squared_error: f64,
    /// The sum of squares of the reference's logits.
    squared_reference: f64,
}

impl Divergence {
    /// Adds a position with its logits, which are finite and as many in both.
    pub(super) fn add(&mut self, reference: &[f32], other: &[f32]) {
        let (kl, squared_error, squared_reference) = compare(reference, other);
        self.kl.push(kl);
        self.squared_error += squared_error;
        self.squared_reference += squared_reference;
        let (top, margin) = top_and_margin(reference);
        let same = top == top_and_margin(other).0;
        self.same_top += usize::from(same);
        if margin > DECIDED_MARGIN {
            self.decided += 1;
            self.decided_same_top += usize::from(same);
        }
    }

    /// The divergence over the positions of all `parts`.
    pub(super) fn sum(parts: &[Self]) -> Self {
        let mut sum = Self::default();
        for part in parts {
            sum.merge(part);
        }
        sum
    }

    fn merge(&mut self, other: &Self) {
        self.kl.extend(&other.kl);
        self.same_top += other.same_top;
        self.decided += other.decided;
        self.decided_same_top += other.decided_same_top;
        self.squared_error += other.squared_error;
        self.squared_reference += other.squared_reference;
    }

    /// Whether both predict the same token at each position.
    pub(super) fn is_same_top(&self) -> bool {
        self.same_top == self.positions()
    }

    fn positions(&self) -> usize {
        self.kl.len()
    }

    /// The figures, as `bench --json` names them. Shares of no positions are null.
    pub(super) fn figures(&self) -> Value {
        let mut kl = self.kl.clone();
        kl.sort_by(f64::total_cmp);
        // The nearest rank: the least value that 99 % of all do not exceed.
        let rank = (kl.len() * 99).div_ceil(100).saturating_sub(1);
        json!({
            "compared": self.positions(),
            "top1_agreement": share(self.same_top, self.positions()),
            "decided": self.decided,
            "decided_top1_agreement": share(self.decided_same_top, self.decided),
            "kl_mean": mean(&kl),
            "kl_p99": kl.get(rank),
            "logits_error": (self.positions() > 0)
                .then(|| (self.squared_error / self.squared_reference.max(f64::MIN_POSITIVE)).sqrt()),
        })
    }
}

/// The Kullback-Leibler divergence of a position, in nats, and the sums of squares of the logits' differences and of the
/// reference's logits. A constant added to all logits changes no prediction, so that both sums are about their means.
fn compare(reference: &[f32], other: &[f32]) -> (f64, f64, f64) {
    let (reference_log_sum, other_log_sum) = (log_sum_exp(reference), log_sum_exp(other));
    let count = as_f64(reference.len());
    let (mut kl, mut differences, mut references) = (0.0, Moments::default(), Moments::default());
    for (&reference, &other) in reference.iter().zip(other) {
        let (reference, other) = (f64::from(reference), f64::from(other));
        let log_probability = reference - reference_log_sum;
        kl += log_probability.exp() * (log_probability - (other - other_log_sum));
        differences.add(other - reference);
        references.add(reference);
    }
    // Rounding may leave a tiny negative number where both are equal.
    (
        kl.max(0.0),
        differences.about_mean(count),
        references.about_mean(count),
    )
}

/// A sum and a sum of squares.
#[derive(Default)]
struct Moments {
    sum: f64,
    squares: f64,
}

impl Moments {
    fn add(&mut self, value: f64) {
        self.sum += value;
        self.squares += value * value;
    }

    /// The sum of squares of the differences from the mean.
    fn about_mean(&self, count: f64) -> f64 {
        (self.squares - self.sum * self.sum / count.max(1.0)).max(0.0)
    }
}

fn log_sum_exp(logits: &[f32]) -> f64 {
    let largest = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    let sum: f64 = logits
        .iter()
        .map(|&logit| (f64::from(logit) - largest).exp())
        .sum();
    largest + sum.ln()
}

/// The index of the largest logit, and by how much it exceeds the second.
fn top_and_margin(logits: &[f32]) -> (usize, f32) {
    let (mut top, mut largest, mut second) = (0, f32::NEG_INFINITY, f32::NEG_INFINITY);
    for (index, &logit) in logits.iter().enumerate() {
        if logit > largest {
            (top, second, largest) = (index, largest, logit);
        } else {
            second = second.max(logit);
        }
    }
    (top, largest - second)
}

fn mean(values: &[f64]) -> Option<f64> {
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / as_f64(values.len()))
}

fn share(part: usize, whole: usize) -> Option<f64> {
    (whole > 0).then(|| as_f64(part) / as_f64(whole))
}

#[expect(
    clippy::cast_precision_loss,
    reason = "counts of positions are far below 2^52"
)]
fn as_f64(count: usize) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    #![allow(
        clippy::unwrap_used,
        clippy::float_cmp,
        reason = "shares of small counts are exact"
    )]

    use super::*;

    fn figure(divergence: &Divergence, name: &str) -> f64 {
        divergence.figures()[name].as_f64().unwrap()
    }

    #[test]
    fn equal_predictions_do_not_diverge() {
        let mut divergence = Divergence::default();
        divergence.add(&[1.0, 2.0, -3.0], &[1.0, 2.0, -3.0]);
        // A constant added to all logits leaves the distribution as it is.
        divergence.add(&[1.0, 2.0, -3.0], &[6.0, 7.0, 2.0]);
        assert_eq!(figure(&divergence, "top1_agreement"), 1.0);
        for name in ["kl_mean", "kl_p99", "logits_error"] {
            assert!(figure(&divergence, name) < 1e-6, "{}", divergence.figures());
        }
    }

    #[test]
    fn the_divergence_is_that_of_the_definition() {
        // Probabilities 1/2, 1/4, 1/4 against 1/4, 1/2, 1/4: 1/2 ln 2 - 1/4 ln 2.
        let (half, quarter) = (0.5_f32.ln(), 0.25_f32.ln());
        let mut divergence = Divergence::default();
        divergence.add(&[half, quarter, quarter], &[quarter, half, quarter]);
        assert!((figure(&divergence, "kl_mean") - 0.25 * 2_f64.ln()).abs() < 1e-6);
        assert_eq!(figure(&divergence, "top1_agreement"), 0.0);
    }

    #[test]
    fn near_ties_count_in_the_first_agreement_only() {
        let mut divergence = Divergence::default();
        divergence.add(&[0.05, 0.0, -1.0], &[0.0, 0.05, -1.0]);
        divergence.add(&[1.0, 0.0, -1.0], &[0.9, 0.1, -1.0]);
        divergence.add(&[1.0, 0.0, -1.0], &[0.1, 0.9, -1.0]);
        assert!((figure(&divergence, "top1_agreement") - 1.0 / 3.0).abs() < 1e-9);
        assert_eq!(figure(&divergence, "decided"), 2.0);
        assert_eq!(figure(&divergence, "decided_top1_agreement"), 0.5);
    }

    #[test]
    fn one_position_in_a_hundred_is_beyond_the_percentile() {
        let mut divergence = Divergence::default();
        for _ in 0..99 {
            divergence.add(&[1.0, 0.0], &[1.0, 0.0]);
        }
        divergence.add(&[1.0, 0.0], &[-5.0, 0.0]);
        assert!(figure(&divergence, "kl_p99") < 1e-9);
        divergence.add(&[1.0, 0.0], &[-5.0, 0.0]);
        assert!(figure(&divergence, "kl_p99") > 1.0);
    }

    #[test]
    fn merged_parts_are_the_whole() {
        let rows = [
            ([1.0, 0.0], [0.5, 0.2]),
            ([0.0, 3.0], [0.1, 2.0]),
            ([2.0, 1.9], [1.0, 1.5]),
        ];
        let (mut whole, mut first, mut second) = <(Divergence, Divergence, Divergence)>::default();
        for (index, (reference, other)) in rows.iter().enumerate() {
            whole.add(reference, other);
            if index == 0 { &mut first } else { &mut second }.add(reference, other);
        }
        first.merge(&second);
        assert_eq!(first.figures(), whole.figures());
        assert!(Divergence::default().figures()["kl_mean"].is_null());
    }
}
