//! The weights that a token is multiplied with, counted in the graph.

use std::collections::HashMap;
use std::path::Path;

use crate::error::OnnxError;
use crate::graph;
use crate::onnx_proto::{AttributeProto, GraphProto, NodeProto, TensorProto, data_type};

/// The weights of all products of matrices in a graph: what decoding reads for each token, and how much it computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ProductWeights {
    /// Multiply-adds for each token.
    pub multiply_adds: u64,
    /// Bytes in the file, scales and zero points included.
    pub bytes: u64,
}

impl ProductWeights {
    /// Those of the decoder's graph at `path`.
    ///
    /// # Errors
    /// The file can't be read, or is no ONNX graph.
    pub fn read(path: &Path) -> Result<Self, OnnxError> {
        Ok(Self::of(&graph::decode(path)?))
    }

    fn of(graph: &GraphProto) -> Self {
        let weights: HashMap<&str, &TensorProto> = graph
            .initializer
            .iter()
            .map(|tensor| (tensor.name.as_str(), tensor))
            .collect();
        let mut all = Self::default();
        for node in &graph.node {
            let weights: Vec<&TensorProto> = node
                .input
                .iter()
                .filter_map(|name| weights.get(name.as_str()).copied())
                .collect();
            let Some(multiply_adds) = multiply_adds(node, &weights) else {
                continue;
            };
            all.multiply_adds += multiply_adds;
            all.bytes += weights.iter().copied().map(bytes).sum::<u64>();
        }
        all
    }
}

/// The multiply-adds of a node for each token; `None` for nodes that multiply with no weights.
fn multiply_adds(node: &NodeProto, weights: &[&TensorProto]) -> Option<u64> {
    let attribute = |name: &str| {
        let value = node.attribute(name).map_or(0, |AttributeProto { i, .. }| *i);
        u64::try_from(value).unwrap_or(0)
    };
    match node.op_type.as_str() {
        "MatMulNBits" => Some(attribute("K") * attribute("N")),
        // A bias has one dimension.
        "MatMul" | "Gemm" | "FusedMatMul" => {
            let matrix = weights.iter().find(|tensor| tensor.dims.len() == 2)?;
            Some(elements(matrix))
        }
        _ => None,
    }
}

fn bytes(tensor: &TensorProto) -> u64 {
    let element = match tensor.data_type {
        data_type::UINT8 => 1,
        data_type::FLOAT16 => 2,
        data_type::INT64 => 8,
        _ => 4,
    };
    elements(tensor) * element
}

fn elements(tensor: &TensorProto) -> u64 {
    let dims = tensor.dims.iter().map(|dim| u64::try_from(*dim).unwrap_or(0));
    dims.product()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::prepare::test_graphs::constant;

    #[test]
    fn products_with_weights_are_counted_and_nothing_else() {
        let mut int4 = NodeProto::new("MatMulNBits", &["x", "w", "s"], "y");
        int4.attribute = vec![AttributeProto::int("K", 64), AttributeProto::int("N", 10)];
        let graph = GraphProto {
            node: vec![
                int4,
                NodeProto::new("MatMul", &["y", "floats"], "z"),
                // Of two computed values, and of a table that a token reads one row of.
                NodeProto::new("MatMul", &["q", "k"], "scores"),
                NodeProto::new("Gather", &["table", "ids"], "x"),
            ],
            initializer: vec![
                constant("w", data_type::UINT8, &[10, 2, 16]),
                constant("s", data_type::FLOAT, &[10, 2]),
                constant("floats", data_type::FLOAT16, &[10, 3]),
                constant("table", data_type::FLOAT, &[1000, 64]),
            ],
            ..GraphProto::default()
        };
        let expected = ProductWeights {
            multiply_adds: 64 * 10 + 30,
            bytes: 320 + 80 + 60,
        };
        assert_eq!(ProductWeights::of(&graph), expected);
    }

    #[test]
    fn the_demonstration_models_weights_are_read() {
        let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/demo");
        let model = phi_edge_models::ModelDir::open(&model).unwrap();
        let weights = ProductWeights::read(&model.decoder_path()).unwrap();
        // Four bits a weight, with a scale for each block.
        let bits = weights.bytes * 8 / weights.multiply_adds;
        assert!((4..=6).contains(&bits), "{weights:?}");
        assert!(ProductWeights::read(Path::new("/nowhere/model.onnx")).is_err());
    }
}
