//! The measurement behind the choice of operators for products: one product of each shape, by the custom operator and by
//! ONNX Runtime's, in sessions like the model's.

use std::time::{Duration, Instant};

use ort::session::Session;
use ort::value::Tensor;
use prost::bytes::Bytes;

use crate::custom_operators;
use crate::edit_cache::{EditCache, Tried};
use crate::error::one_line;
use crate::prepare::{ProductShape, SingleMatmul, replace_matmuls, single_matmuls};
use crate::product_choice::{LeastTimes, MEASURED_ROWS, ProductChoice, ProductOperator, in_turns};
use crate::session;
use crate::verify_edits::Trial;

/// The fewest weights of a matrix that is measured. Smaller products take less time than a session's run costs beside them.
const MIN_WEIGHTS: usize = 1 << 20;

/// The choice for each shape of `model`'s products that the custom operator supports: that of the cache, else measured and kept
/// there. Shapes of small matrices, and those that can't be measured, are left out: the custom operator computes them.
pub(crate) fn choose_operators(trial: &Trial<'_>, model: &Bytes, cache: &EditCache) -> Vec<ProductChoice> {
    let Some((_, matmuls)) = single_matmuls(model, |_| true) else {
        return Vec::new();
    };
    let mut choices = Vec::new();
    for SingleMatmul { shape, .. } in matmuls {
        let tried = Tried::Products {
            shape,
            threads: trial.cpu.threads,
        };
        let cached = cache
            .note(tried)
            .and_then(|note| ProductChoice::read(shape, &note));
        if let Some(choice) = cached {
            choices.push(choice);
        } else if shape.k * shape.n >= MIN_WEIGHTS {
            match measure(trial, model, shape) {
                Ok(times) => {
                    let choice = ProductChoice::by(shape, times);
                    cache.put_note(tried, &choice.note());
                    choices.push(choice);
                }
                Err(fault) => tracing::debug!(%shape, fault, "The speed of a product can't be measured."),
            }
        }
    }
    choices.sort_by_key(|choice| (choice.shape.k, choice.shape.n, choice.shape.block));
    choices
}

/// The least times with each number of rows.
fn measure(trial: &Trial<'_>, model: &Bytes, shape: ProductShape) -> Result<[LeastTimes; 2], String> {
    let none = || "no product has this shape".to_owned();
    let (plain, matmuls) = single_matmuls(model, |found| *found == shape).ok_or_else(none)?;
    let matmul = matmuls.first().ok_or_else(none)?;
    let edited = replace_matmuls(&plain, &[]).ok_or_else(none)?;
    let mut library = open(trial, &plain)?;
    let mut custom = open(trial, &edited)?;
    let mut of_rows = |rows: usize| {
        in_turns(|operator| match operator {
            ProductOperator::Custom => time(&mut custom, matmul, rows),
            ProductOperator::Library => time(&mut library, matmul, rows),
        })
    };
    let [one, many] = MEASURED_ROWS;
    Ok([of_rows(one)?, of_rows(many)?])
}

fn open(trial: &Trial<'_>, graph: &[u8]) -> Result<Session, String> {
    let mut builder =
        session::builder_beside_weights(trial.library, trial.target, trial.cpu, trial.weights_folder)
            .map_err(|error| error.to_string())?;
    custom_operators::commit(|| builder.commit_from_memory(graph)).map_err(one_line)
}

/// The time of one product.
fn time(session: &mut Session, matmul: &SingleMatmul, rows: usize) -> Result<Duration, String> {
    let k = matmul.shape.k;
    #[expect(clippy::cast_precision_loss, reason = "small numbers")]
    let values: Vec<f32> = (0..rows * k).map(|at| (at % 251) as f32 - 125.0).collect();
    let input = Tensor::from_array(([rows, k], values)).map_err(one_line)?;
    let begun = Instant::now();
    let outputs = session
        .run(vec![(matmul.input.clone(), input.into_dyn())])
        .map_err(one_line)?;
    let elapsed = begun.elapsed();
    drop(outputs);
    Ok(elapsed)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use phi_edge_models::ModelDir;
    use serde_json::{Map, Value};

    use super::*;
    use crate::decoder::{DecoderConfig, OnnxDecoder};
    use crate::isa::{Isa, IsaChoice};
    use crate::library::Library;
    use crate::prepare::Prepare;
    use crate::provider::Provider;

    /// Writes notes about products of these shapes into all entries of a cache.
    fn write_notes(cache: &Path, shapes: &[ProductShape], note: &str) {
        let mut all: Map<String, Value> = serde_json::from_slice(&std::fs::read(cache).unwrap()).unwrap();
        for entry in all.values_mut() {
            for &shape in shapes {
                let tried = Tried::Products { shape, threads: 1 };
                let entry = entry.as_object_mut().unwrap();
                entry.insert(tried.to_string(), Value::from(note));
            }
        }
        std::fs::write(cache, Value::Object(all).to_string()).unwrap();
    }

    #[test]
    fn products_of_a_slower_kernel_are_left_to_the_library() {
        let (Some(library), Some(isa)) = (Library::for_tests(), Isa::detect()) else {
            return;
        };
        let folder = tempfile::tempdir().unwrap();
        let cache = folder.path().join("outcomes.json");
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/demo");
        let model = ModelDir::open(&path).unwrap();
        let load = |isa| {
            let config = DecoderConfig {
                provider: Provider::Cpu,
                threads: Some(1),
                edit_cache: Some(cache.clone()),
                isa,
                ..DecoderConfig::default()
            };
            let decoder = OnnxDecoder::load(&library, &model, &config).unwrap();
            (decoder.prepared(), decoder.provider_report().products.clone())
        };
        assert_eq!(
            load(IsaChoice::Auto),
            (Prepare::ALL, Vec::new()),
            "small products are not measured"
        );
        let graph = std::fs::read(model.decoder_path()).unwrap().into();
        let (_, matmuls) = single_matmuls(&graph, |_| true).unwrap();
        let shapes: Vec<ProductShape> = matmuls.iter().map(|matmul| matmul.shape).collect();
        assert!(shapes.len() > 1);
        write_notes(&cache, &shapes[..1], "ONNX Runtime; scripted");
        write_notes(&cache, &shapes[1..], "custom operator; scripted");
        let (prepared, products) = load(IsaChoice::Auto);
        assert_eq!((prepared, products.len()), (Prepare::ALL, shapes.len()));
        for choice in &products {
            assert_eq!(choice.by_library, choice.shape == shapes[0], "{choice}");
        }
        // With none left, the graph is edited as if there were no operator for products.
        write_notes(&cache, &shapes, "ONNX Runtime; scripted");
        let (prepared, products) = load(IsaChoice::Auto);
        assert_eq!(prepared.as_str(), "ragged+attention");
        assert!(products.iter().all(|choice| choice.by_library) && products.len() == shapes.len());
        // An instruction set that is asked for is used.
        assert_eq!(load(IsaChoice::Only(isa)), (Prepare::ALL, Vec::new()));
    }

    #[test]
    fn a_product_is_measured_by_both_operators() {
        let (Some(library), Some(isa)) = (Library::for_tests(), Isa::detect()) else {
            return;
        };
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/demo");
        let model = ModelDir::open(&path).unwrap();
        let decoder = model.decoder_path();
        let trial = Trial {
            library: &library,
            path: &decoder,
            weights_folder: &path,
            facts: crate::graph::read(&decoder).unwrap(),
            genai: model.config(),
            target: crate::provider::ExecutionTarget::CPU,
            cpu: crate::isa::CpuResources {
                threads: 1,
                isa: Some(isa),
                paged: None,
            },
        };
        let graph = std::fs::read(&decoder).unwrap().into();
        let (_, matmuls) = single_matmuls(&graph, |_| true).unwrap();
        let shape = matmuls[0].shape;
        for times in measure(&trial, &graph, shape).unwrap() {
            assert!(times.custom < Duration::MAX && times.library < Duration::MAX);
        }
        let other = ProductShape {
            k: shape.k + 1,
            ..shape
        };
        assert!(measure(&trial, &graph, other).is_err());
    }
}
