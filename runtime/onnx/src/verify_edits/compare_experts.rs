//! Comparison of the custom operator for experts with the library's, on the experts of one layer.

use prost::bytes::Bytes;

use crate::experts_session::{ExpertInputs, ExpertsSession};
use crate::logit_difference::LogitDifference;
use crate::prepare::{SingleExperts, replace_experts, single_experts};
use crate::verify_edits::Trial;
use crate::verify_edits::reference::row_values;

/// The numbers of tokens of the trial's inputs: one, a few, and more than fit one piece of work.
const TRIAL_TOKENS: [usize; 3] = [1, 7, 33];
/// The largest accepted difference, as a share of the largest result: both round the gated values to eight bits, each with its own
/// last bits before. Seen: 2e-6.
const RESULT_TOLERANCE: f32 = 1e-2;

/// Compares the first layer's experts with the library's, on the same inputs.
pub(crate) fn verify(trial: &Trial<'_>, model: &Bytes) -> Result<(), String> {
    let none = || "its experts are of another form".to_owned();
    let plain = single_experts(model).ok_or_else(none)?;
    let edited = replace_experts(&plain.graph).ok_or_else(none)?;
    // One after the other, so that memory holds the weights once.
    let expected = results(trial, &plain.graph, &plain)?;
    let got = results(trial, &edited, &plain)?;
    for (got, expected) in got.iter().zip(&expected) {
        let found = LogitDifference::of(got, expected);
        if !found.is_within(RESULT_TOLERANCE) {
            let LogitDifference { largest, difference } = found;
            return Err(format!(
                "results of experts of up to {largest} differ by up to {difference} from the library's"
            ));
        }
    }
    Ok(())
}

/// The results of `graph` for each number of tokens.
fn results(trial: &Trial<'_>, graph: &[u8], experts: &SingleExperts) -> Result<Vec<Vec<f32>>, String> {
    let mut session = ExpertsSession::open(trial.library, trial.cpu, trial.weights_folder, graph, experts)?;
    let of_tokens = |tokens: usize| {
        // Scores and weights are of no importance here, as long as experts differ in them.
        let values = row_values(tokens * experts.hidden.max(2 * experts.experts));
        let count = tokens * experts.experts;
        session.run(ExpertInputs {
            tokens: values[..tokens * experts.hidden].to_vec(),
            scores: values[..count].to_vec(),
            weights: values.iter().rev().take(count).map(|value| value.abs()).collect(),
        })
    };
    TRIAL_TOKENS.into_iter().map(of_tokens).collect()
}
