//! Graphs for the tests of single edits.

use std::path::Path;

use prost::Message;
use prost::bytes::Bytes;

use crate::onnx_proto::{GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, data_type};

/// A model of these nodes and nothing else.
pub(super) fn graph_of(node: Vec<NodeProto>) -> Bytes {
    graph_with_outputs(&[], node)
}

/// The same with outputs of floats.
pub(super) fn graph_with_outputs(outputs: &[&str], node: Vec<NodeProto>) -> Bytes {
    let output = |name: &&str| ValueInfoProto::tensor(name, data_type::FLOAT, &["size"]);
    let graph = GraphProto {
        node,
        output: outputs.iter().map(output).collect(),
        name: "main".into(),
        ..GraphProto::default()
    };
    let model = ModelProto {
        ir_version: 10,
        graph: Some(graph),
        producer_name: "test".into(),
        opset_import: Vec::new(),
    };
    model.encode_to_vec().into()
}

/// A constant without contents.
pub(crate) fn constant(name: &str, data_type: i32, dims: &[i64]) -> TensorProto {
    TensorProto {
        name: name.into(),
        data_type,
        dims: dims.to_vec(),
        ..TensorProto::default()
    }
}

/// The graph of a model.
pub(super) fn read(model: &Bytes) -> GraphProto {
    ModelProto::decode(model.clone()).unwrap().graph.unwrap()
}

/// Graphs that the exporter wrote, of 2026 and of 2024.
pub(super) fn exported() -> [(&'static str, Bytes); 2] {
    [
        "models/demo/model.onnx",
        "tests/fixtures/forms/2024/phi3-random-cpu-int4.onnx",
    ]
    .map(|file| {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        (file, std::fs::read(root.join(file)).unwrap().into())
    })
}
