//! The edit that replaces attention by ONNX Runtime's `PagedAttention`: keys and values in blocks, which tables give to rows, and
//! the tokens of all rows one behind the other, without padding.
//!
//! The graph then takes its ids as `[1, tokens]`. Past keys and values become the pool `[blocks, tokens of a block, heads,
//! head_size]`, and the present ones the same memory.

use std::collections::HashSet;

use prost::Message;
use prost::bytes::Bytes;

use crate::onnx_proto::{NodeProto, TensorProto, ValueInfoProto, data_type, graph_field};
use crate::prepare::cut_layers::needed;
use crate::prepare::graph_editor::{
    FieldEdit, GraphEditor, GraphField, with_inputs, with_operator, with_opset, with_outputs,
};

/// The operator.
const OPERATOR: &str = "PagedAttention";

/// The input with the places where rows begin among the run's tokens, and their end: `i32 [rows + 1]`.
pub(crate) const ROW_STARTS: &str = "phi_edge.row_starts";
/// The input with the tokens that each row holds already: `i32 [rows]`.
pub(crate) const PAST_LENGTHS: &str = "phi_edge.past_lengths";
/// The input with the blocks of each row: `i32 [rows, blocks]`.
pub(crate) const BLOCK_TABLE: &str = "phi_edge.block_table";
/// The input with what holds for all rows of the run: the most tokens that one appends, the most that one holds then, and the
/// fewest that the longest holds then: `i32 [3]`.
pub(crate) const LENGTH_BOUNDS: &str = "phi_edge.length_bounds";

/// Inputs of `GroupQueryAttention`: queries, keys and values (or all of them in the first); past keys and values; cosines and
/// sines.
const TOKENS: [usize; 3] = [0, 1, 2];
const PAST: [usize; 2] = [3, 4];
const TABLES: [usize; 2] = [7, 8];
/// Its inputs of lengths, which follow from the mask: the tables replace them.
const MASK_LENGTHS: [usize; 2] = [5, 6];
/// Its outputs of present keys and values.
const PRESENT: [usize; 2] = [1, 2];
/// The input of `PagedAttention` with the bounds.
const BOUNDS_INPUT: usize = 16;

const AXIS: &str = "phi_edge.packed_axis";

/// Replaces each `GroupQueryAttention` by `PagedAttention` of `domain`. `None`: there is none, or one of another form; keys and
/// values must have 16 bits, and the rope tables must not be selected within the graph.
pub(crate) fn page_attention(model: &Bytes, domain: &str) -> Option<Bytes> {
    let editor = GraphEditor::read(model)?;
    let kinds = editor.inputs()?;
    let is_half = |name: &String| kinds.get(name) == Some(&data_type::FLOAT16);
    let attention = |index: &usize| editor.nodes[*index].op_type == "GroupQueryAttention";
    let attentions: Vec<usize> = (0..editor.nodes.len()).filter(attention).collect();
    let fit = attentions.iter().all(|&index| {
        fits(&editor.nodes[index]) && PAST.iter().all(|at| is_half(&editor.nodes[index].input[*at]))
    });
    let chooses = editor.nodes.iter().any(|node| node.op_type == "If");
    if attentions.is_empty() || !fit || chooses {
        return None;
    }
    let needed = needed_nodes(&editor, &attentions)?;
    let pools: HashSet<&String> = attentions
        .iter()
        .flat_map(|&index| pool_names(&editor.nodes[index]))
        .collect();
    let edited = editor.write(
        |part| match part {
            GraphField::Node(index) if attentions.contains(&index) => {
                let inputs = paged_inputs(index, &editor.nodes[index]);
                let node = with_inputs(editor.node(index)?, &inputs)?;
                let mut outputs = editor.nodes[index].output.clone();
                outputs[0] = attended(index);
                let node = with_outputs(&node, &outputs)?;
                Some(FieldEdit::Put(with_operator(&node, OPERATOR, domain)?))
            }
            GraphField::Node(index) if !needed.contains(&index) => Some(FieldEdit::Drop),
            GraphField::Named(graph_field::INPUT | graph_field::OUTPUT, name)
                if pools.iter().any(|pool| *pool == name) =>
            {
                Some(FieldEdit::Put(pool(name).encode_to_vec()))
            }
            // They are of tensors that have other shapes now.
            GraphField::Named(graph_field::VALUE_INFO, _) => Some(FieldEdit::Drop),
            _ => Some(FieldEdit::Keep),
        },
        &added(&editor, &attentions),
    )?;
    Some(with_opset(edited, domain, 1))
}

/// Whether `PagedAttention` computes what this node does.
fn fits(node: &NodeProto) -> bool {
    let input = |at: usize| node.input.get(at).map_or("", String::as_str);
    let wired = [0, PAST[0], PAST[1], TABLES[0], TABLES[1]]
        .iter()
        .all(|at| !input(*at).is_empty())
        && input(1).is_empty() == input(2).is_empty();
    let known = [&TOKENS[..], &PAST, &MASK_LENGTHS, &TABLES].concat();
    let alone = (0..node.input.len()).all(|at| known.contains(&at) || input(at).is_empty());
    let same = node
        .attribute
        .iter()
        .all(|attribute| match attribute.name.as_str() {
            "num_heads" | "kv_num_heads" => attribute.i > 0,
            "do_rotary" => attribute.i == 1,
            "scale" | "rotary_interleaved" | "local_window_size" | "softcap" => true,
            _ => false,
        });
    wired && alone && same && node.attribute("do_rotary").is_some() && node.outputs().count() == 3
}

/// The nodes that the graph's outputs depend on, once attention takes no lengths from the mask.
fn needed_nodes(editor: &GraphEditor, attentions: &[usize]) -> Option<HashSet<usize>> {
    let outputs: Vec<String> = editor
        .names(graph_field::OUTPUT)?
        .into_iter()
        .map(str::to_owned)
        .collect();
    let inputs: Vec<Vec<String>> = (0..editor.nodes.len())
        .map(|index| {
            let mut inputs = editor.nodes[index].input.clone();
            for at in MASK_LENGTHS.iter().filter(|_| attentions.contains(&index)) {
                inputs.get_mut(*at).into_iter().for_each(String::clear);
            }
            inputs
        })
        .collect();
    Some(needed(&editor.nodes, &inputs, &outputs))
}

/// The inputs of the node of `PagedAttention` in the place of this one.
fn paged_inputs(index: usize, node: &NodeProto) -> Vec<String> {
    let name = |at: usize| node.input[at].clone();
    let token = |at: usize| {
        if node.input[at].is_empty() {
            String::new()
        } else {
            packed(index, at)
        }
    };
    let mut inputs: Vec<String> = TOKENS.map(token).to_vec();
    inputs.extend(PAST.map(name));
    inputs.extend([ROW_STARTS, PAST_LENGTHS, BLOCK_TABLE].map(str::to_owned));
    inputs.extend(TABLES.map(name));
    inputs.resize(BOUNDS_INPUT, String::new());
    inputs.push(LENGTH_BOUNDS.to_owned());
    inputs
}

/// What is added to the graph: its inputs, and the nodes that take the axis of rows away before each attention and add it again
/// behind it.
fn added(editor: &GraphEditor, attentions: &[usize]) -> Vec<(u32, Vec<u8>)> {
    let axis = TensorProto {
        dims: vec![1],
        data_type: data_type::INT64,
        int64_data: vec![0],
        name: AXIS.into(),
        ..TensorProto::default()
    };
    let inputs = [
        (ROW_STARTS, &["phi_edge.row_ends"][..]),
        (PAST_LENGTHS, &["phi_edge.rows"]),
        (BLOCK_TABLE, &["phi_edge.rows", "phi_edge.row_blocks"]),
        (LENGTH_BOUNDS, &["phi_edge.bounds"]),
    ];
    let mut added = vec![(graph_field::INITIALIZER, axis.encode_to_vec())];
    for (name, dims) in inputs {
        let input = ValueInfoProto::tensor(name, data_type::INT32, dims);
        added.push((graph_field::INPUT, input.encode_to_vec()));
    }
    for &index in attentions {
        let node = &editor.nodes[index];
        for at in TOKENS.into_iter().filter(|at| !node.input[*at].is_empty()) {
            let squeeze = NodeProto::new("Squeeze", &[&node.input[at], AXIS], &packed(index, at));
            added.push((graph_field::NODE, squeeze.encode_to_vec()));
        }
        let unsqueeze = NodeProto::new("Unsqueeze", &[&attended(index), AXIS], &node.output[0]);
        added.push((graph_field::NODE, unsqueeze.encode_to_vec()));
    }
    added
}

fn pool_names(node: &NodeProto) -> impl Iterator<Item = &String> {
    let past = PAST.iter().filter_map(|at| node.input.get(*at));
    past.chain(PRESENT.iter().filter_map(|at| node.output.get(*at)))
}

/// The declaration of a tensor of the pool.
fn pool(name: &str) -> ValueInfoProto {
    let dims = [
        "phi_edge.blocks",
        "phi_edge.block_tokens",
        "phi_edge.heads",
        "phi_edge.head_size",
    ];
    ValueInfoProto::tensor(name, data_type::FLOAT16, &dims)
}

fn packed(index: usize, input: usize) -> String {
    format!("phi_edge.packed.{index}.{input}")
}

fn attended(index: usize) -> String {
    format!("phi_edge.attended.{index}")
}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::*;
    use crate::onnx_proto::{AttributeProto, GraphProto, ModelProto};
    use crate::paged_stand_in::RUNTIME_DOMAIN;
    use crate::prepare::rope::take_tables;
    use crate::prepare::test_graphs::{exported, read};

    /// The exporter's graphs with keys and values of 16 bits, and their rope tables taken out.
    fn halved() -> Vec<(&'static str, Bytes)> {
        let halve = |(file, graph): (&'static str, Bytes)| {
            let mut model = ModelProto::decode(take_tables(&graph).unwrap().0).unwrap();
            for input in &mut model.graph.as_mut().unwrap().input {
                if input.name.starts_with("past") {
                    *input = ValueInfoProto::tensor(&input.name, data_type::FLOAT16, &["a", "b", "c", "d"]);
                }
            }
            (file, Bytes::from(model.encode_to_vec()))
        };
        exported().into_iter().map(halve).collect()
    }

    fn names(values: &[ValueInfoProto]) -> Vec<&str> {
        values.iter().map(|value| value.name.as_str()).collect()
    }

    #[test]
    fn every_attention_of_the_exporters_graphs_is_paged() {
        for (file, graph) in halved() {
            let (before, after) = (
                read(&graph),
                read(&page_attention(&graph, RUNTIME_DOMAIN).unwrap()),
            );
            let count =
                |graph: &GraphProto, op: &str| graph.node.iter().filter(|node| node.op_type == op).count();
            let layers = count(&before, "GroupQueryAttention");
            assert!(layers > 1, "{file}");
            let counts =
                ["GroupQueryAttention", OPERATOR, "Squeeze", "Unsqueeze"].map(|op| count(&after, op));
            assert_eq!(counts, [0, layers, layers, layers], "{file}");
            // What was computed from the mask alone is gone, and the mask is an input still.
            assert_eq!(
                (count(&before, "ReduceSum"), count(&after, "ReduceSum")),
                (1, 0),
                "{file}"
            );
            let known = names(&before.input);
            let added = [ROW_STARTS, PAST_LENGTHS, BLOCK_TABLE, LENGTH_BOUNDS];
            assert_eq!(names(&after.input), [known, added.to_vec()].concat(), "{file}");
            assert_eq!(names(&after.output), names(&before.output), "{file}");
            let old = before
                .node
                .iter()
                .filter(|node| node.op_type == "GroupQueryAttention");
            let new = after.node.iter().filter(|node| node.op_type == OPERATOR);
            for (old, new) in old.zip(new) {
                assert_eq!(
                    (new.domain.as_str(), &new.attribute),
                    (RUNTIME_DOMAIN, &old.attribute)
                );
                assert_eq!(new.input.len(), BOUNDS_INPUT + 1);
                assert_eq!(
                    (&new.input[3..5], &new.input[8..10]),
                    (&old.input[3..5], &old.input[7..9])
                );
                assert_eq!(new.output[1..], old.output[1..]);
                let of = |name: &str| {
                    let producer = after.node.iter().find(|node| node.output[0] == name);
                    producer.unwrap_or_else(|| panic!("{file} has no {name}"))
                };
                assert_eq!(of(&new.input[0]).input[0], old.input[0]);
                assert_eq!(of(&old.output[0]).input[0], new.output[0]);
            }
        }
    }

    #[test]
    fn what_paged_attention_does_not_compute_is_left_alone() {
        for (file, graph) in exported() {
            assert_eq!(
                page_attention(&graph, RUNTIME_DOMAIN),
                None,
                "{file} selects its tables"
            );
            let (graph, _) = take_tables(&graph).unwrap();
            assert_eq!(page_attention(&graph, RUNTIME_DOMAIN), None, "{file} has 32 bits");
        }
        let (_, graph) = halved().remove(0);
        let node = read(&graph)
            .node
            .into_iter()
            .find(|node| node.op_type == "GroupQueryAttention");
        let node = node.unwrap();
        assert!(fits(&node));
        let changed = |change: fn(&mut NodeProto)| {
            let mut node = node.clone();
            change(&mut node);
            fits(&node)
        };
        assert!(changed(|node| node
            .attribute
            .push(AttributeProto::int("local_window_size", 64))));
        assert!(!changed(|node| node
            .attribute
            .push(AttributeProto::int("smooth_softmax", 1))));
        assert!(!changed(|node| node
            .attribute
            .retain(|attribute| attribute.name != "do_rotary")));
        assert!(!changed(|node| {
            node.input.resize(11, String::new());
            "bias".clone_into(&mut node.input[10]);
        }));
        assert!(
            !changed(|node| "keys".clone_into(&mut node.input[1])),
            "keys without values"
        );
        assert!(!changed(|node| node.input[7].clear()), "no tables");
        assert!(!changed(|node| node.input.truncate(3)), "no past");
        assert_eq!(
            page_attention(&Bytes::from_static(b"no model"), RUNTIME_DOMAIN),
            None
        );
    }
}
