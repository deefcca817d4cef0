//! The edit that replaces attention by the custom operator ([`crate::attention`]).

use prost::Message;
use prost::bytes::Bytes;

use crate::attention::{LAYER, OPERATOR};
use crate::custom_operators::DOMAIN;
use crate::onnx_proto::{AttributeProto, NodeProto, ValueInfoProto, data_type, graph_field};
use crate::prepare::graph_editor::{
    FieldEdit, GraphEditor, GraphField, with_attribute, with_inputs, with_operator, with_opset, with_outputs,
};
use crate::prepare::ragged::{LENGTHS, POSITIONS};

/// The input with the blocks of keys and values: `u8 [layers, rows, blocks, heads, bytes]`.
pub(crate) const KV_BLOCKS: &str = "phi_edge.kv_blocks";
/// The input with the table of rows: `i32 [rows, columns]`.
pub(crate) const KV_TABLE: &str = "phi_edge.kv_table";

/// The inputs of `GroupQueryAttention` that the custom operator takes, in its order: packed queries, keys and values; the
/// last token of each row; cosines and sines; positions; lengths. Blocks and table come behind them.
const OPERATOR_INPUTS: [usize; 6] = [0, 5, 7, 8, 9, 16];
/// Its inputs of past keys and values, and its outputs of present ones, which the blocks replace.
const PAST: [usize; 2] = [3, 4];
const PRESENT: [usize; 2] = [1, 2];

/// Replaces each `GroupQueryAttention`. `None`: there is none, or one of another form.
///
/// Supported are graphs whose lengths and positions are wired ([`super::ragged`]), with packed queries, keys and
/// values, and keys and values of `f32`; nothing else may be asked for (windows, soft caps, sinks, biases, scaled
/// caches).
pub(crate) fn replace_attention(model: &Bytes) -> Option<Bytes> {
    let editor = GraphEditor::read(model)?;
    let attentions = attentions(&editor).ok()?;
    let names = |of: fn(&NodeProto) -> [&String; 2]| -> Vec<&String> {
        attentions
            .iter()
            .flat_map(|&index| of(&editor.nodes[index]))
            .collect()
    };
    let past = names(|node| PAST.map(|at| &node.input[at]));
    let present = names(|node| PRESENT.map(|at| &node.output[at]));
    let inputs = [
        ValueInfoProto::tensor(
            KV_BLOCKS,
            data_type::UINT8,
            &[
                "phi_edge.layers",
                "phi_edge.kv_rows",
                "phi_edge.blocks",
                "phi_edge.heads",
                "phi_edge.bytes",
            ],
        ),
        ValueInfoProto::tensor(KV_TABLE, data_type::INT32, &["phi_edge.rows", "phi_edge.columns"]),
    ];
    let extra = inputs.map(|input| (graph_field::INPUT, input.encode_to_vec()));
    let edited = editor.write(
        |part| match part {
            GraphField::Node(index) if attentions.contains(&index) => {
                // Exporters write nodes in the order of computation.
                let layer = attentions.iter().position(|at| *at == index)?;
                let mut inputs = OPERATOR_INPUTS
                    .map(|at| editor.nodes[index].input[at].clone())
                    .to_vec();
                inputs.extend([KV_BLOCKS, KV_TABLE].map(str::to_owned));
                let node = with_inputs(editor.node(index)?, &inputs)?;
                let node = with_outputs(&node, &editor.nodes[index].output[..1])?;
                let layer = AttributeProto::int(LAYER, i64::try_from(layer).ok()?);
                let node = with_attribute(node, &layer);
                Some(FieldEdit::Put(with_operator(&node, OPERATOR, DOMAIN)?))
            }
            GraphField::Named(graph_field::INPUT, name) if past.iter().any(|past| *past == name) => {
                Some(FieldEdit::Drop)
            }
            GraphField::Named(graph_field::OUTPUT, name)
                if present.iter().any(|present| *present == name) =>
            {
                Some(FieldEdit::Drop)
            }
            // As for matmuls: the library infers nothing through an operator that it does not know.
            GraphField::Named(graph_field::VALUE_INFO, _) => Some(FieldEdit::Drop),
            _ => Some(FieldEdit::Keep),
        },
        &extra,
    )?;
    Some(with_opset(edited, DOMAIN, 1))
}

/// The reason why [`replace_attention`] leaves `model` as it is; `None` where it does not.
pub(crate) fn attention_obstacle(model: &Bytes) -> Option<String> {
    match GraphEditor::read(model) {
        Some(editor) => attentions(&editor).err(),
        None => Some("the graph can't be read".to_owned()),
    }
}

/// The indices of the nodes to replace. The error says why there are none.
fn attentions(editor: &GraphEditor) -> Result<Vec<usize>, String> {
    let floats: Vec<String> = editor
        .inputs()
        .unwrap_or_default()
        .into_iter()
        .filter(|(_, kind)| *kind == data_type::FLOAT)
        .map(|(name, _)| name)
        .collect();
    let mut found = Vec::new();
    for (index, node) in editor.nodes.iter().enumerate() {
        if node.op_type == "GroupQueryAttention" {
            if let Some(misfit) = misfit(node, &floats) {
                return Err(format!("a GroupQueryAttention of the graph has {misfit}"));
            }
            found.push(index);
        }
    }
    if found.is_empty() {
        return Err("the graph has no GroupQueryAttention".to_owned());
    }
    Ok(found)
}

/// What the operator does not support of a node, as the object of "has"; `None` where it supports all.
fn misfit(node: &NodeProto, floats: &[String]) -> Option<String> {
    let input = |at: usize| node.input.get(at).map_or("", String::as_str);
    let wired = OPERATOR_INPUTS.iter().all(|at| !input(*at).is_empty())
        && input(9) == POSITIONS
        && input(16) == LENGTHS
        && PAST.iter().all(|at| floats.iter().any(|name| name == input(*at)));
    // Input 6 is the longest row's length, which the operator does not need.
    let alone = (0..node.input.len())
        .all(|at| at == 6 || OPERATOR_INPUTS.contains(&at) || PAST.contains(&at) || input(at).is_empty());
    let unsupported = node
        .attribute
        .iter()
        .find(|attribute| !match attribute.name.as_str() {
            "num_heads" | "kv_num_heads" => attribute.i > 0,
            "scale" => true,
            "do_rotary" => attribute.i == 1,
            "rotary_interleaved" => attribute.i == 0,
            "local_window_size" => attribute.i == -1,
            "softcap" => attribute.f == 0.0,
            _ => false,
        });
    let named = |name: &str| node.attribute.iter().any(|attribute| attribute.name == name);
    if let Some(attribute) = unsupported {
        let value = match attribute.r#type {
            AttributeProto::FLOAT => format!(" = {}", attribute.f),
            AttributeProto::INT => format!(" = {}", attribute.i),
            _ => String::new(),
        };
        return Some(format!(
            "an attribute that the operator does not support ({}{value})",
            attribute.name
        ));
    }
    if !named("do_rotary") {
        return Some("no attribute do_rotary".to_owned());
    }
    let fits = wired && alone && node.outputs().count() == 3;
    (!fits).then(|| "other inputs or outputs than the operator supports".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::prepare::ragged::wire_lengths;
    use crate::prepare::rope::take_tables;
    use crate::prepare::test_graphs::{exported, read};

    #[test]
    fn every_attention_of_the_exporters_graphs_is_replaced() {
        for (file, graph) in exported() {
            assert_eq!(replace_attention(&graph), None, "{file} is not wired");
            let (graph, _) = take_tables(&graph).unwrap();
            let wired = wire_lengths(&graph).unwrap();
            let edited = replace_attention(&wired).unwrap();
            let (before, after) = (read(&wired), read(&edited));
            let mut replaced = 0;
            for (before, after) in before.node.iter().zip(&after.node) {
                if before.op_type == "GroupQueryAttention" {
                    replaced += 1;
                    assert_eq!(
                        (after.op_type.as_str(), after.domain.as_str()),
                        (OPERATOR, DOMAIN)
                    );
                    assert_eq!(after.input.len(), OPERATOR_INPUTS.len() + 2);
                    assert_eq!(after.output, before.output[..1]);
                    assert_eq!(after.attribute(LAYER).unwrap().i, replaced - 1);
                } else {
                    assert_eq!(after, before);
                }
            }
            assert!(replaced > 1, "{file}");
            let named = |values: &[ValueInfoProto], part: &str| {
                values.iter().filter(|value| value.name.contains(part)).count()
            };
            assert!(named(&before.input, "past") > 1 && named(&before.output, "present") > 1);
            assert_eq!(
                (named(&after.input, "past"), named(&after.output, "present")),
                (0, 0)
            );
            assert_eq!(named(&after.input, "phi_edge.kv_"), 2);
        }
    }

    #[test]
    fn what_asks_for_more_is_left_alone() {
        let (_, graph) = exported().into_iter().next().unwrap();
        let wired = wire_lengths(&take_tables(&graph).unwrap().0).unwrap();
        let node = read(&wired)
            .node
            .into_iter()
            .find(|node| node.op_type == "GroupQueryAttention")
            .unwrap();
        let floats = [node.input[3].clone(), node.input[4].clone()];
        assert_eq!(misfit(&node, &floats), None);
        assert!(misfit(&node, &floats[..1]).is_some(), "keys of another kind");
        let changed = |change: fn(&mut NodeProto)| {
            let mut node = node.clone();
            change(&mut node);
            misfit(&node, &floats).unwrap_or_default()
        };
        let wiring = "other inputs or outputs";
        assert!(changed(|node| "bias".clone_into(&mut node.input[10])).contains(wiring));
        assert!(changed(|node| "keys".clone_into(&mut node.input[1])).contains(wiring));
        assert!(changed(|node| node.input[16].clear()).contains(wiring));
        let window = changed(|node| {
            node.attribute.push(AttributeProto::int("local_window_size", 64));
        });
        assert!(window.contains("(local_window_size = 64)"), "{window}");
        let smooth = changed(|node| node.attribute.push(AttributeProto::int("smooth_softmax", 1)));
        assert!(smooth.contains("(smooth_softmax = 1)"), "{smooth}");
        let soft = changed(|node| {
            let cap = AttributeProto {
                f: 30.0,
                r#type: AttributeProto::FLOAT,
                ..AttributeProto::int("softcap", 0)
            };
            node.attribute.push(cap);
        });
        assert!(soft.contains("(softcap = 30)"), "{soft}");
        let plain = changed(|node| node.attribute.retain(|attribute| attribute.name != "do_rotary"));
        assert!(plain.contains("no attribute do_rotary"), "{plain}");
    }

    #[test]
    fn the_reason_says_what_is_in_the_way() {
        let (_, graph) = exported().into_iter().next().unwrap();
        let wired = wire_lengths(&take_tables(&graph).unwrap().0).unwrap();
        assert_eq!(attention_obstacle(&wired), None);
        assert!(attention_obstacle(&graph).is_some_and(|reason| reason.contains("GroupQueryAttention")));
        assert!(attention_obstacle(&Bytes::new()).is_some());
    }
}
