//! Whether the own operator gives what the library's gives, product by product.

use std::path::Path;

use ort::session::Session;
use ort::value::Tensor;

use crate::error::one_line;
use crate::prepare::{Single, own_products, single_products};
use crate::session;
use crate::verify_edits::Trial;

/// Rows of the trial's inputs: one, a few, and more than fit one part of the work.
const ROWS: [usize; 3] = [1, 7, 33];
/// The largest difference, as a share of the largest result. Seen: 1e-6. A value halfway between two whole numbers that is
/// rounded the other way makes 1e-4.
const TOLERANCE: f32 = 1e-3;

/// Holds one product of each shape against the library's, on the same inputs.
pub(crate) fn hold(trial: &Trial<'_>, model: &[u8]) -> Result<(), String> {
    let none = || "its products are of another form".to_owned();
    let (plain, products) = single_products(model).ok_or_else(none)?;
    let own = own_products(&plain).ok_or_else(none)?;
    // One after the other, so that memory holds the weights once.
    let expected = results(trial, &plain, &products)?;
    let got = results(trial, &own, &products)?;
    for ((got, expected), product) in got.iter().zip(&expected).zip(products.iter().cycle()) {
        let largest = expected
            .iter()
            .fold(0f32, |largest, value| largest.max(value.abs()));
        let differences = expected.iter().zip(got).map(|(a, b)| (a - b).abs());
        // Not a number is the largest difference there is.
        let difference = differences.fold(0f32, |most, d| if d.is_nan() || d > most { d } else { most });
        if got.len() != expected.len() || difference.is_nan() || difference > TOLERANCE * largest {
            return Err(format!(
                "products of {} times {} of up to {largest} differ by up to {difference} from the library's",
                product.k, product.n
            ));
        }
    }
    Ok(())
}

/// What `graph` gives for each number of rows, product by product.
fn results(trial: &Trial<'_>, graph: &[u8], products: &[Single]) -> Result<Vec<Vec<f32>>, String> {
    let said = |error: ort::Error| one_line(error);
    let folder = trial.path.parent().unwrap_or(Path::new("."));
    let mut session: Session = session::beside(trial.library, trial.provider, trial.threads, folder)
        .map_err(|error| error.to_string())?
        .commit_from_memory(graph)
        .map_err(said)?;
    let mut results = Vec::new();
    for rows in ROWS {
        let inputs = products.iter().map(|product| {
            let tensor = Tensor::from_array(([rows, product.k], values(rows * product.k))).map_err(said)?;
            Ok((product.input.clone(), tensor.into_dyn()))
        });
        let inputs = inputs.collect::<Result<Vec<_>, String>>()?;
        let outputs = session.run(inputs).map_err(said)?;
        for product in products {
            let output = outputs.get(&product.output).ok_or("a product is missing")?;
            results.push(output.try_extract_tensor::<f32>().map_err(said)?.1.to_vec());
        }
    }
    Ok(results)
}

/// Numbers without order about zero, some of them large: what a layer's input looks like.
fn values(count: usize) -> Vec<f32> {
    let mut state = 1u32;
    let mut next = || {
        // Numerical Recipes' generator: nothing depends on its quality.
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        f32::from(i16::from_ne_bytes([
            (state >> 16).to_le_bytes()[0],
            (state >> 24).to_le_bytes()[0],
        ])) / 32768.0
    };
    (0..count).map(|_| next() / (1.05 - next().abs())).collect()
}
