//! Comparison of the custom matmul operator with the library's, matmul by matmul.

use ort::session::Session;
use ort::value::Tensor;
use prost::bytes::Bytes;

use crate::custom_operators;
use crate::error::one_line;
use crate::prepare::{SingleMatmul, replace_matmuls, single_matmuls};
use crate::session;
use crate::verify_edits::Trial;
use crate::verify_edits::reference::{reference, row_values};

/// The numbers of rows of the trial's inputs: one, a few, and more than fit one piece of work.
const TRIAL_ROWS: [usize; 3] = [1, 7, 33];
/// The largest accepted difference, as a share of the largest result. Seen: 1e-6. A value halfway between two whole
/// numbers that is rounded the other way makes 1e-4.
const RESULT_TOLERANCE: f32 = 1e-3;

/// Compares one matmul of each shape with the library's, on the same inputs.
pub(crate) fn verify(trial: &Trial<'_>, model: &Bytes) -> Result<(), String> {
    let none = || "its products are of another form".to_owned();
    let (plain, matmuls) = single_matmuls(model, |_| true).ok_or_else(none)?;
    let edited = replace_matmuls(&plain, &[]).ok_or_else(none)?;
    // One after the other, so that memory holds the weights once.
    let expected = results(trial, &reference(&plain), &matmuls)?;
    let got = results(trial, &edited, &matmuls)?;
    for ((got, expected), matmul) in got.iter().zip(&expected).zip(matmuls.iter().cycle()) {
        let largest = expected
            .iter()
            .fold(0f32, |largest, value| largest.max(value.abs()));
        let differences = expected.iter().zip(got).map(|(a, b)| (a - b).abs());
        // NaN counts as the largest difference.
        let difference = differences.fold(0f32, |most, d| if d.is_nan() || d > most { d } else { most });
        if got.len() != expected.len() || difference.is_nan() || difference > RESULT_TOLERANCE * largest {
            return Err(format!(
                "products of {} times {} of up to {largest} differ by up to {difference} from the library's",
                matmul.shape.k, matmul.shape.n
            ));
        }
    }
    Ok(())
}

/// The results of `graph` for each number of rows, matmul by matmul.
fn results(trial: &Trial<'_>, graph: &[u8], matmuls: &[SingleMatmul]) -> Result<Vec<Vec<f32>>, String> {
    let said = |error: ort::Error| one_line(error);
    let folder = trial.weights_folder;
    let mut builder = session::builder_beside_weights(trial.library, trial.target, trial.cpu, folder)
        .map_err(|error| error.to_string())?;
    let mut session: Session =
        custom_operators::commit(|| builder.commit_from_memory(graph)).map_err(said)?;
    let mut results = Vec::new();
    for rows in TRIAL_ROWS {
        let inputs = matmuls.iter().map(|matmul| {
            let k = matmul.shape.k;
            let tensor = Tensor::from_array(([rows, k], row_values(rows * k))).map_err(said)?;
            Ok((matmul.input.clone(), tensor.into_dyn()))
        });
        let inputs = inputs.collect::<Result<Vec<_>, String>>()?;
        let outputs = session.run(inputs).map_err(said)?;
        for matmul in matmuls {
            let output = outputs.get(&matmul.output).ok_or("a product is missing")?;
            results.push(output.try_extract_tensor::<f32>().map_err(said)?.1.to_vec());
        }
    }
    Ok(results)
}
