//! Cutting a graph to its first layers and its end: the small model of the same form that edits are tried on.

use std::collections::HashSet;

use prost::bytes::Bytes;

use crate::onnx_proto::{NodeProto, graph_field};
use crate::prepare::graph_editor::{FieldEdit, GraphEditor, GraphField, with_inputs};
use crate::prepare::tail::{Tail, attentions};

/// Returns the graph with its first `layers` layers only. `outputs` are its outputs then: the logits first, and the
/// keys and values of those layers. `None`: the graph is of another form, or has no more layers than that.
pub(crate) fn cut(model: &Bytes, layers: usize, outputs: &[String]) -> Option<Bytes> {
    let editor = GraphEditor::read(model)?;
    let nodes = &editor.nodes;
    let attentions = attentions(&editor)?;
    if layers == 0 || attentions.len() <= layers {
        return None;
    }
    let tail = Tail::of(&editor, outputs.first()?)?;
    let last = nodes[*attentions.last()?].output.first()?;
    let residual = tail.sources.iter().find(|source| *source != last)?;
    let kept = *attentions.get(layers - 1)?;
    let attended = nodes[kept].output.first()?;
    let stream = stream_beside(nodes, kept, joins(nodes, &tail, residual)?)?;
    // The end of the graph follows the last layer that is kept.
    let renamed = |name: &String| match name {
        name if name == last => attended.clone(),
        name if name == residual => stream.clone(),
        name => name.clone(),
    };
    let inputs: Vec<Vec<String>> = (0..nodes.len())
        .map(|index| {
            let own = &nodes[index].input;
            if tail.nodes.contains(&index) {
                own.iter().map(renamed).collect()
            } else {
                own.clone()
            }
        })
        .collect();
    let needed = needed(nodes, &inputs, outputs);
    let names: HashSet<&str> = needed
        .iter()
        .flat_map(|&index| &inputs[index])
        .map(String::as_str)
        .collect();
    editor.write(
        |part| {
            Some(match part {
                GraphField::Node(index) if !needed.contains(&index) => FieldEdit::Drop,
                GraphField::Node(index) if tail.nodes.contains(&index) => {
                    FieldEdit::Put(with_inputs(editor.node(index)?, &inputs[index])?)
                }
                GraphField::Named(graph_field::OUTPUT, name)
                    if !outputs.iter().any(|output| output == name) =>
                {
                    FieldEdit::Drop
                }
                GraphField::Named(graph_field::INITIALIZER | graph_field::INPUT, name)
                    if !names.contains(name) =>
                {
                    FieldEdit::Drop
                }
                GraphField::Named(graph_field::VALUE_INFO, _) => FieldEdit::Drop,
                _ => FieldEdit::Keep,
            })
        },
        &[],
    )
}

/// The node of the tail that adds the residual stream to the attention's result: its operator, and the index of the
/// stream among its inputs.
fn joins<'a>(nodes: &'a [NodeProto], tail: &Tail, residual: &str) -> Option<(&'a str, usize)> {
    tail.nodes.iter().find_map(|&index| {
        let at = nodes[index].input.iter().position(|input| input == residual)?;
        Some((nodes[index].op_type.as_str(), at))
    })
}

/// The residual stream beside the attention `from`: the same input of the next node of the same operator.
fn stream_beside<'a>(
    nodes: &'a [NodeProto],
    from: usize,
    (operator, at): (&str, usize),
) -> Option<&'a String> {
    let mut behind: HashSet<&str> = nodes[from].outputs().collect();
    // Exporters write nodes in the order of computation.
    for node in &nodes[from + 1..] {
        if !node.input.iter().any(|input| behind.contains(input.as_str())) {
            continue;
        }
        if node.op_type == operator {
            return node
                .input
                .get(at)
                .filter(|stream| !behind.contains(stream.as_str()));
        }
        behind.extend(node.outputs());
    }
    None
}

/// The nodes that `outputs` depend on.
pub(super) fn needed(nodes: &[NodeProto], inputs: &[Vec<String>], outputs: &[String]) -> HashSet<usize> {
    let mut wanted: Vec<&str> = outputs.iter().map(String::as_str).collect();
    let mut found = HashSet::new();
    while let Some(name) = wanted.pop() {
        let producer = nodes
            .iter()
            .position(|node| node.outputs().any(|output| output == name));
        if let Some(index) = producer.filter(|index| found.insert(*index)) {
            wanted.extend(
                inputs[index]
                    .iter()
                    .map(String::as_str)
                    .filter(|name| !name.is_empty()),
            );
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::prepare::test_graphs::{exported, read};

    #[test]
    fn the_exporters_graphs_are_cut() {
        for (file, graph) in exported() {
            let outputs = ["logits", "present.0.key", "present.0.value"].map(ToOwned::to_owned);
            let cut_graph = cut(&graph, 1, &outputs).unwrap();
            let edited = read(&cut_graph);
            let count = |op: &str| edited.node.iter().filter(|node| node.op_type == op).count();
            assert_eq!((count("GroupQueryAttention"), count("If")), (1, 1), "{file}");
            let attended = edited
                .node
                .iter()
                .find(|n| n.op_type == "GroupQueryAttention")
                .unwrap();
            let tail = Tail::of(&GraphEditor::read(&cut_graph).unwrap(), "logits").unwrap();
            assert!(tail.sources.contains(&attended.output[0]), "{file}");
            assert_eq!(edited.output.len(), 3, "{file}");
            let inputs: Vec<&str> = edited.input.iter().map(|input| input.name.as_str()).collect();
            assert_eq!(inputs.len(), 4, "{inputs:?}");
            assert!(
                edited.initializer.len() < read(&graph).initializer.len(),
                "{file}"
            );
            assert_eq!(cut(&graph, 50, &outputs), None);
        }
    }
}
