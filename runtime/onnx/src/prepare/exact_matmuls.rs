//! The edits that ask the library for products in 32-bit floats, for trials.

use prost::Message;
use prost::bytes::Bytes;

use crate::onnx_proto::{AttributeProto, NodeProto, node_field};
use crate::prepare::graph_editor::{FieldEdit, GraphEditor, GraphField, with_attribute};
use crate::prepare::protobuf::fields;

const ACCURACY: &str = "accuracy_level";
/// The accuracy level of products in 32-bit floats.
const EXACT: i64 = 1;

/// Leaves the accuracy level out of each `QMoE` that names one, so that experts' rows are not quantised. `None`: the graph has none.
pub(crate) fn exact_experts(model: &Bytes) -> Option<Bytes> {
    let editor = GraphEditor::read(model)?;
    let rounds = |node: &NodeProto| node.op_type == "QMoE" && node.attribute(ACCURACY).is_some();
    if !editor.nodes.iter().any(rounds) {
        return None;
    }
    editor.write(
        |part| match part {
            GraphField::Node(index) if rounds(&editor.nodes[index]) => {
                Some(FieldEdit::Put(without_attribute(editor.node(index)?, ACCURACY)?))
            }
            _ => Some(FieldEdit::Keep),
        },
        &[],
    )
}

/// Asks each `MatMulNBits` that names an accuracy level for 32-bit floats, so that rows are not quantised. `None`: the graph has
/// none.
pub(crate) fn exact_matmuls(model: &Bytes) -> Option<Bytes> {
    let editor = GraphEditor::read(model)?;
    let rounds: Vec<bool> = editor
        .nodes
        .iter()
        .map(|node| node.op_type == "MatMulNBits" && node.attribute.iter().any(|own| own.name == ACCURACY))
        .collect();
    if !rounds.contains(&true) {
        return None;
    }
    editor.write(
        |part| match part {
            GraphField::Node(index) if rounds[index] => {
                let node = without_attribute(editor.node(index)?, ACCURACY)?;
                let exact = AttributeProto::int(ACCURACY, EXACT);
                Some(FieldEdit::Put(with_attribute(node, &exact)))
            }
            _ => Some(FieldEdit::Keep),
        },
        &[],
    )
}

/// Returns a node without the attribute of that name, otherwise unchanged.
fn without_attribute(node: &[u8], name: &str) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(node.len());
    for field in fields(node)? {
        let is_it = field.number == node_field::ATTRIBUTE
            && AttributeProto::decode(&node[field.payload.clone()])
                .is_ok_and(|attribute| attribute.name == name);
        if !is_it {
            out.extend_from_slice(&node[field.whole]);
        }
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::onnx_proto::ModelProto;
    use crate::prepare::test_graphs::{exported, graph_of};

    #[test]
    fn experts_lose_their_accuracy_level_alone() {
        let mut node = NodeProto::new("QMoE", &["x"], "y");
        node.attribute = vec![AttributeProto::int("k", 2), AttributeProto::int(ACCURACY, 4)];
        let graph = graph_of(vec![node.clone()]);
        let edited = ModelProto::decode(exact_experts(&graph).unwrap()).unwrap();
        node.attribute.pop();
        assert_eq!(edited.graph.unwrap().node, [node.clone()]);
        assert_eq!(exact_experts(&graph_of(vec![node])), None);
    }

    #[test]
    fn products_change_in_nothing_but_their_accuracy() {
        let [(file, graph), (exact, other)] = exported();
        let read = |graph: &Bytes| ModelProto::decode(graph.clone()).unwrap().graph.unwrap();
        let (before, after) = (read(&graph), read(&exact_matmuls(&graph).unwrap()));
        assert_eq!(before.node.len(), after.node.len(), "{file}");
        let mut changed = 0;
        for (before, after) in before.node.iter().zip(&after.node) {
            let mut expected = before.clone();
            if before.op_type == "MatMulNBits" {
                changed += 1;
                expected.attribute.retain(|attribute| attribute.name != ACCURACY);
                expected.attribute.push(AttributeProto::int(ACCURACY, EXACT));
            }
            assert_eq!(after, &expected, "{file}");
        }
        assert!(changed > 4, "{file}");
        let names_no_level = read(&other).node.iter().all(|node| node.op_type != "MatMulNBits");
        assert_eq!(exact_matmuls(&other).is_none(), names_no_level, "{exact}");
    }
}
