//! The edit that has matmuls by constant matrices of 32-bit floats quantised at load ([`crate::matmul`]).

use std::collections::HashMap;

use prost::bytes::Bytes;

use crate::custom_operators::DOMAIN;
use crate::matmul::QUANTISING_OPERATOR;
use crate::onnx_proto::{AttributeProto, NodeProto, data_type};
use crate::prepare::graph_editor::{
    FieldEdit, GraphEditor, GraphField, InitializerForm, with_attribute, with_operator, with_opset,
};

/// Replaces each `MatMul` by a constant matrix of 32-bit floats with the custom operator that quantises the matrix to
/// `bits` bits (4 or 8) in blocks of `block`. `None`: the graph has none.
pub(crate) fn quantise_matmuls(model: &Bytes, bits: i64, block: i64) -> Option<Bytes> {
    let editor = GraphEditor::read(model)?;
    let held = editor.initializer_forms()?;
    let shapes: Vec<Option<(i64, i64)>> = editor.nodes.iter().map(|node| matrix(node, &held)).collect();
    if shapes.iter().all(Option::is_none) {
        return None;
    }
    let edited = editor.write(
        |part| match part {
            GraphField::Node(index) => match shapes.get(index).copied().flatten() {
                Some((k, n)) => {
                    let node = with_operator(editor.node(index)?, QUANTISING_OPERATOR, DOMAIN)?;
                    let attributes = [("K", k), ("N", n), ("bits", bits), ("block_size", block)];
                    let node = attributes.into_iter().fold(node, |node, (name, value)| {
                        with_attribute(node, &AttributeProto::int(name, value))
                    });
                    Some(FieldEdit::Put(node))
                }
                None => Some(FieldEdit::Keep),
            },
            _ => Some(FieldEdit::Keep),
        },
        &[],
    )?;
    Some(with_opset(edited, DOMAIN, 1))
}

/// Rows and columns of the constant matrix that `node` multiplies by.
fn matrix(node: &NodeProto, held: &HashMap<String, InitializerForm>) -> Option<(i64, i64)> {
    let [input, weights] = node.input.as_slice() else {
        return None;
    };
    let form = held.get(weights)?;
    let plain = node.op_type == "MatMul" && node.domain.is_empty() && !held.contains_key(input);
    match (form.data_type, form.dims.as_slice()) {
        (data_type::FLOAT, &[k, n]) if plain && k > 0 && n > 0 => Some((k, n)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::*;
    use crate::onnx_proto::{GraphProto, ModelProto};
    use crate::prepare::test_graphs::{constant, read};

    #[test]
    fn matrices_of_floats_are_quantised_and_nothing_else() {
        let products = [
            ["x", "floats"],
            ["x", "halves"],
            ["x", "vector"],
            ["x", "y"],
            ["floats", "floats"],
        ];
        let nodes = products
            .iter()
            .enumerate()
            .map(|(at, inputs)| NodeProto::new("MatMul", inputs, &format!("y{at}")));
        let graph = GraphProto {
            node: nodes.collect(),
            initializer: vec![
                constant("floats", data_type::FLOAT, &[64, 32]),
                constant("halves", data_type::FLOAT16, &[64, 32]),
                constant("vector", data_type::FLOAT, &[64]),
            ],
            ..GraphProto::default()
        };
        let model: Bytes = ModelProto {
            graph: Some(graph),
            ..ModelProto::default()
        }
        .encode_to_vec()
        .into();
        let edited = read(&quantise_matmuls(&model, 8, 64).unwrap());
        let operators: Vec<&str> = edited.node.iter().map(|node| node.op_type.as_str()).collect();
        assert_eq!(
            operators,
            [QUANTISING_OPERATOR, "MatMul", "MatMul", "MatMul", "MatMul"]
        );
        let value = |name: &str| edited.node[0].attribute(name).map(|attribute| attribute.i);
        assert_eq!(
            ["K", "N", "bits", "block_size"].map(value),
            [Some(64), Some(32), Some(8), Some(64)]
        );
        assert_eq!(
            quantise_matmuls(&Bytes::from_static(b"no protobuf at all"), 8, 64),
            None
        );
    }
}
