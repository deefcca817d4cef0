//! The edit for ragged runs: rows of different numbers of tokens, of none, and of both rope regimes. Each row's
//! number of tokens and each token's position become inputs of the attention (GroupQueryAttention's inputs 16, of
//! ONNX Runtime 1.32, and 9).

use prost::Message;
use prost::bytes::Bytes;

use crate::onnx_proto::{ValueInfoProto, data_type, graph_field};
use crate::prepare::graph_editor::{FieldEdit, GraphEditor, GraphField, with_inputs};

/// The input with the number of each row's tokens that count: `i32 [rows]`.
pub(crate) const LENGTHS: &str = "phi_edge.query_lengths";
/// The input with each token's row in the rope tables: `i64 [rows, width]`.
pub(crate) const POSITIONS: &str = "phi_edge.positions";

const POSITIONS_INDEX: usize = 9;
const LENGTHS_INDEX: usize = 16;

/// Wires both inputs to every attention. `None`: the graph is of another form.
pub(crate) fn wire_lengths(model: &Bytes) -> Option<Bytes> {
    let editor = GraphEditor::read(model)?;
    let attention = |index: &usize| editor.nodes[*index].op_type == "GroupQueryAttention";
    let attentions: Vec<usize> = (0..editor.nodes.len()).filter(attention).collect();
    let wired = |index: usize, at: usize| {
        editor.nodes[index]
            .input
            .get(at)
            .is_some_and(|name| !name.is_empty())
    };
    let fit = attentions.iter().all(|&index| {
        // A node that does not rotate gets its positions elsewhere; one that is wired already has other inputs there.
        let rotates = editor.nodes[index]
            .attribute
            .iter()
            .any(|attribute| attribute.name == "do_rotary" && attribute.i == 1);
        rotates && !wired(index, POSITIONS_INDEX) && !wired(index, LENGTHS_INDEX)
    });
    // A graph that still selects its table by the mask's width can't mix regimes.
    let chooses = editor.nodes.iter().any(|node| node.op_type == "If");
    if attentions.is_empty() || !fit || chooses {
        return None;
    }
    let inputs = [
        ValueInfoProto::tensor(POSITIONS, data_type::INT64, &["phi_edge.rows", "phi_edge.width"]),
        ValueInfoProto::tensor(LENGTHS, data_type::INT32, &["phi_edge.rows"]),
    ];
    let extra = inputs.map(|input| (graph_field::INPUT, input.encode_to_vec()));
    editor.write(
        |part| match part {
            GraphField::Node(index) if attentions.contains(&index) => {
                let mut inputs = editor.nodes[index].input.clone();
                inputs.resize(inputs.len().max(LENGTHS_INDEX + 1), String::new());
                POSITIONS.clone_into(&mut inputs[POSITIONS_INDEX]);
                LENGTHS.clone_into(&mut inputs[LENGTHS_INDEX]);
                Some(FieldEdit::Put(with_inputs(editor.node(index)?, &inputs)?))
            }
            _ => Some(FieldEdit::Keep),
        },
        &extra,
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::prepare::rope::take_tables;
    use crate::prepare::test_graphs::{exported, read};

    #[test]
    fn every_attention_of_the_exporters_graphs_is_wired() {
        for (file, graph) in exported() {
            assert_eq!(wire_lengths(&graph), None, "{file} chooses its table itself");
            let (graph, _) = take_tables(&graph).unwrap();
            let edited = wire_lengths(&graph).unwrap();
            let mut attentions = 0;
            for node in read(&edited)
                .node
                .iter()
                .filter(|node| node.op_type == "GroupQueryAttention")
            {
                assert_eq!(
                    (node.input[9].as_str(), node.input[16].as_str()),
                    (POSITIONS, LENGTHS),
                    "{file}"
                );
                attentions += 1;
            }
            assert!(attentions > 1, "{file}");
            assert_eq!(wire_lengths(&edited), None, "{file} is wired already");
        }
    }
}
