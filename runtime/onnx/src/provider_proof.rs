//! The proof of an execution provider, before a model is opened on it: one product of matrices, whose result is known.
//!
//! It shows that driver and libraries are there, and that the device computes. `verify_edits` then compares the first layers of
//! the model itself.

use ort::value::Tensor;
use prost::Message as _;
use prost::bytes::Bytes;

use crate::error::{OnnxError, one_line};
use crate::isa::CpuResources;
use crate::library::Library;
use crate::onnx_proto::{
    GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto, ValueInfoProto, data_type,
};
use crate::provider::{ExecutionTarget, check_placement};
use crate::session;

/// Rows and columns of the matrices.
const SIZE: u8 = 16;

/// Runs one product of matrices on `target`. Fails where it can't be run there, or the result is wrong.
pub(crate) fn run_one_node(library: &Library, target: ExecutionTarget<'_>) -> Result<(), OnnxError> {
    let fault = |fault: String| target.unavailable(format!("a graph of one node fails on it: {fault}"));
    let mut builder = session::builder(library, target, CpuResources::ONE_THREAD)?;
    let mut session = builder
        .commit_from_memory(&graph())
        .map_err(|error| fault(one_line(error)))?;
    check_placement(&session, target)?;
    let size = usize::from(SIZE);
    let input = Tensor::from_array(([size, size], matrix(3)))?;
    let outputs = session
        .run(ort::inputs!["x" => input])
        .map_err(|error| fault(one_line(error)))?;
    let found = outputs
        .get("y")
        .ok_or_else(|| fault("it has no result".to_owned()))?;
    let (_, found) = found
        .try_extract_tensor::<f32>()
        .map_err(|error| fault(one_line(error)))?;
    let expected = product(&matrix(3), &matrix(5));
    // Whole numbers of few bits: exact in every format of floats that providers compute with.
    let Some(place) = difference(&expected, found) else {
        return Ok(());
    };
    Err(OnnxError::ProviderUnavailable {
        provider: target.provider.as_str(),
        fault: format!("it computes wrong: a product of matrices differs at place {place}"),
        advice: "Update the GPU's driver".to_owned(),
    })
}

/// The first place at which `found` is not what is expected.
fn difference(expected: &[f32], found: &[f32]) -> Option<usize> {
    let differs = |(right, found): (&f32, &f32)| found.is_nan() || (right - found).abs() > 0.0;
    let shorter = expected.len().min(found.len());
    let wrong = expected.iter().zip(found).position(differs);
    wrong.or_else(|| (expected.len() != found.len()).then_some(shorter))
}

/// A matrix of whole numbers from -1 to 1, different for each `seed`.
fn matrix(seed: u16) -> Vec<f32> {
    let elements = 0..u16::from(SIZE) * u16::from(SIZE);
    elements
        .map(|at| f32::from((at * seed + at / u16::from(SIZE)) % 3) - 1.0)
        .collect()
}

/// The product of two square matrices.
fn product(a: &[f32], b: &[f32]) -> Vec<f32> {
    let size = usize::from(SIZE);
    let column = |column: usize| b.iter().skip(column).step_by(size);
    a.chunks(size)
        .flat_map(|row| (0..size).map(move |at| row.iter().zip(column(at)).map(|(a, b)| a * b).sum::<f32>()))
        .collect()
}

/// The graph `y = x * w`, where `w` is a matrix of the graph's own.
fn graph() -> Vec<u8> {
    with_nodes(vec![NodeProto::new("MatMul", &["x", "w"], "y")])
}

/// A graph from `x` to `y` of these nodes, which may use the matrix `w`.
fn with_nodes(node: Vec<NodeProto>) -> Vec<u8> {
    let data: Vec<u8> = matrix(5).into_iter().flat_map(f32::to_le_bytes).collect();
    let size = i64::from(SIZE);
    let tensor = |name: &str| ValueInfoProto::tensor(name, data_type::FLOAT, &["rows", "columns"]);
    let model = ModelProto {
        ir_version: 8,
        producer_name: "phi-edge".to_owned(),
        graph: Some(GraphProto {
            node,
            name: "proof".to_owned(),
            initializer: vec![TensorProto {
                dims: vec![size, size],
                data_type: data_type::FLOAT,
                name: "w".to_owned(),
                raw_data: Bytes::from(data),
                ..TensorProto::default()
            }],
            input: vec![tensor("x")],
            output: vec![tensor("y")],
            value_info: Vec::new(),
        }),
        opset_import: vec![OperatorSetIdProto {
            domain: String::new(),
            version: 17,
        }],
    };
    model.encode_to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::provider::{PluginSettings, Provider, ProviderSettings, RECORD_PLACEMENT};

    #[test]
    fn the_product_is_that_of_the_library() {
        let Some(library) = Library::for_tests() else {
            return;
        };
        let mut builder = session::builder(&library, ExecutionTarget::CPU, CpuResources::ONE_THREAD).unwrap();
        let mut session = builder.commit_from_memory(&graph()).unwrap();
        let size = usize::from(SIZE);
        let input = Tensor::from_array(([size, size], matrix(3))).unwrap();
        let outputs = session.run(ort::inputs!["x" => input]).unwrap();
        let (_, found) = outputs["y"].try_extract_tensor::<f32>().unwrap();
        let expected = product(&matrix(3), &matrix(5));
        assert_eq!(found, expected);
        // No result that is right by chance.
        assert_ne!(found, matrix(3));
        assert!(expected.iter().any(|value| *value > 1.0) && expected.iter().any(|value| *value < -1.0));
    }

    #[test]
    fn a_wrong_result_is_found_with_its_place() {
        let expected = product(&matrix(3), &matrix(5));
        assert_eq!(difference(&expected, &expected), None);
        for (place, value) in [(0, f32::NAN), (7, expected[7] + 1.0), (255, f32::INFINITY)] {
            let mut found = expected.clone();
            found[place] = value;
            assert_eq!(difference(&expected, &found), Some(place));
        }
        assert_eq!(difference(&expected, &expected[..250]), Some(250));
        assert_eq!(difference(&expected, &[]), Some(0));
    }

    /// The settings of `PHI_EDGE_TEST_GGML_PLUGIN`, a plugin that computes on the processor by its own kernels, if it is there
    /// and may be loaded.
    fn plugin(library: &Library) -> Option<ProviderSettings> {
        let Some(plugin) = std::env::var_os("PHI_EDGE_TEST_GGML_PLUGIN") else {
            println!("SKIPPED: PHI_EDGE_TEST_GGML_PLUGIN is not set");
            return None;
        };
        // With the option `partial` it takes single nodes of a graph.
        let options = [("device", "cpu"), ("partial", "1")];
        let settings = ProviderSettings {
            plugin: Some(PluginSettings {
                library: plugin.into(),
                options: options
                    .map(|(name, value)| (name.to_owned(), value.to_owned()))
                    .into(),
            }),
            ..ProviderSettings::default()
        };
        if let Err(OnnxError::PluginRefused { fault, .. }) = run_one_node(library, on_plugin(&settings)) {
            println!("SKIPPED: {fault}");
            return None;
        }
        Some(settings)
    }

    fn on_plugin(settings: &ProviderSettings) -> ExecutionTarget<'_> {
        ExecutionTarget {
            provider: Provider::Plugin,
            settings,
        }
    }

    #[test]
    fn a_plugin_that_computes_right_passes() {
        let Some(library) = Library::for_tests() else {
            return;
        };
        let Some(mut settings) = plugin(&library) else {
            return;
        };
        run_one_node(&library, on_plugin(&settings)).unwrap();
        let device = on_plugin(&settings).device(&library).unwrap();
        assert!(device.contains("on processor"), "{device}");
        settings.device_id = Some(7);
        let refused = run_one_node(&library, on_plugin(&settings));
        let said = refused.unwrap_err().to_string();
        assert!(said.contains("no device of the number 7"), "{said}");
    }

    #[test]
    fn sessions_of_the_processor_stay_there_beside_a_plugin() {
        let Some(library) = Library::for_tests() else {
            return;
        };
        if plugin(&library).is_none() {
            return;
        }
        let (entry, value) = RECORD_PLACEMENT;
        let builder = session::builder(&library, ExecutionTarget::CPU, CpuResources::ONE_THREAD).unwrap();
        let mut builder = builder.with_config_entry(entry, value).unwrap();
        let session = builder.commit_from_memory(&graph()).unwrap();
        let refused = check_placement(&session, ExecutionTarget::CPU);
        let said = refused.unwrap_err().to_string();
        assert!(
            said.contains("the processor would run nodes (1): MatMul"),
            "{said}"
        );
    }

    #[test]
    fn a_node_that_the_provider_leaves_to_the_processor_needs_leave() {
        let Some(library) = Library::for_tests() else {
            return;
        };
        let Some(mut settings) = plugin(&library) else {
            return;
        };
        let graph = with_nodes(vec![
            NodeProto::new("MatMul", &["x", "w"], "product"),
            NodeProto::new("Hardmax", &["product"], "y"),
        ]);
        let placement = |settings: &ProviderSettings| {
            let mut builder =
                session::builder(&library, on_plugin(settings), CpuResources::ONE_THREAD).unwrap();
            let session = builder.commit_from_memory(&graph).unwrap();
            check_placement(&session, on_plugin(settings))
        };
        let said = placement(&settings).unwrap_err().to_string();
        assert!(
            said.contains("the processor would run nodes (1): Hardmax y/Hardmax. ")
                && said.contains("runtime.allow_cpu_nodes"),
            "{said}"
        );
        for allowed in ["Hardmax", "y/Hardmax", "y/*"] {
            settings.allow_cpu_nodes = vec![allowed.to_owned()];
            let placement = placement(&settings).unwrap();
            let names: Vec<&str> = placement.on_cpu.iter().map(|node| node.name.as_str()).collect();
            assert_eq!(names, ["y/Hardmax"], "{allowed}");
        }
    }

    #[test]
    fn a_provider_that_the_library_does_not_have_is_named_with_what_to_do() {
        let Some(library) = Library::for_tests() else {
            return;
        };
        let settings = ProviderSettings::default();
        let target = ExecutionTarget {
            provider: Provider::DirectMl,
            settings: &settings,
        };
        let error = run_one_node(&library, target).unwrap_err().to_string();
        assert!(
            error.contains("is not built with this provider") && error.contains("runtime.library"),
            "{error}"
        );
    }
}
