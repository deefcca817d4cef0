//! The edit that replaces experts with weights of four bits by the custom operator ([`crate::experts`]).

use std::collections::{HashMap, HashSet};

use prost::Message;
use prost::bytes::Bytes;

use crate::custom_operators::DOMAIN;
use crate::experts::{HAS_LENGTHS, HAS_ZEROS, OPERATOR, input};
use crate::matmul::takes_block;
use crate::onnx_proto::{AttributeProto, NodeProto, ValueInfoProto, data_type, graph_field};
use crate::prepare::graph_editor::{
    FieldEdit, GraphEditor, GraphField, with_attribute, with_inputs, with_operator, with_opset,
};
use crate::prepare::logits::CHOSEN_HIDDEN;
use crate::prepare::ragged::LENGTHS;

/// The most experts of a token.
const MAX_CHOSEN: i64 = 64;

/// The inputs of `QMoE` that the custom operator takes.
mod source {
    pub(super) const TOKENS: usize = 0;
    pub(super) const SCORES: usize = 1;
    pub(super) const IN_WEIGHTS: usize = 2;
    pub(super) const IN_SCALES: usize = 3;
    pub(super) const OUT_WEIGHTS: usize = 5;
    pub(super) const OUT_SCALES: usize = 6;
    pub(super) const IN_ZEROS: usize = 11;
    pub(super) const OUT_ZEROS: usize = 12;
    pub(super) const ROUTER_WEIGHTS: usize = 14;
}

/// Replaces each `QMoE`; weights stay. `None`: the graph has none, or one that the custom operator does not support.
///
/// Supported are weights of four bits and `f32` scales, both held by the graph, accuracy level 4 (rows may be quantised to eight
/// bits), SwiGLU of gates and values in turns, the router's weights as an input of their own, and no biases. Where rows may
/// differ in their number of tokens, padding goes through no expert.
pub(crate) fn replace_experts(model: &Bytes) -> Option<Bytes> {
    let editor = GraphEditor::read(model)?;
    let held = editor.initializers()?;
    let experts: Vec<usize> = (0..editor.nodes.len())
        .filter(|&index| editor.nodes[index].op_type == "QMoE")
        .collect();
    if experts.is_empty() || !experts.iter().all(|&index| fits(&editor.nodes[index], &held)) {
        return None;
    }
    let lengths = editor.inputs()?.contains_key(LENGTHS);
    let chosen = of_chosen_tokens(&editor.nodes);
    let edited = editor.write(
        |part| match part {
            GraphField::Node(index) if experts.contains(&index) => {
                let with_lengths = lengths && !chosen.contains(&index);
                let node = &editor.nodes[index];
                let inputs = inputs(node, with_lengths);
                let has_zeros = !inputs[input::IN_ZEROS].is_empty();
                // An omitted input may not be the last.
                let count = inputs.iter().rposition(|input| !input.is_empty())? + 1;
                let mut node = with_inputs(editor.node(index)?, &inputs[..count])?;
                for (name, value) in [(HAS_LENGTHS, with_lengths), (HAS_ZEROS, has_zeros)] {
                    node = with_attribute(node, &AttributeProto::int(name, i64::from(value)));
                }
                Some(FieldEdit::Put(with_operator(&node, OPERATOR, DOMAIN)?))
            }
            // As for matmuls: the library infers nothing through an operator that it does not know.
            GraphField::Named(graph_field::VALUE_INFO, _) => Some(FieldEdit::Drop),
            _ => Some(FieldEdit::Keep),
        },
        &[],
    )?;
    Some(with_opset(edited, DOMAIN, 1))
}

/// The experts of one layer as a graph of their own.
pub(crate) struct SingleExperts {
    pub(crate) graph: Bytes,
    /// Its inputs: tokens `f32 [tokens, hidden]`, scores and weights `f32 [tokens, experts]`.
    pub(crate) inputs: [String; 3],
    /// Its output `f32 [tokens, hidden]`.
    pub(crate) output: String,
    pub(crate) hidden: usize,
    pub(crate) experts: usize,
}

/// The first of `model`'s experts that the custom operator supports, on which it is tried. `None`: there are none.
pub(crate) fn single_experts(model: &Bytes) -> Option<SingleExperts> {
    let editor = GraphEditor::read(model)?;
    let held = editor.initializers()?;
    let index = editor.nodes.iter().position(|node| fits(node, &held))?;
    let node = &editor.nodes[index];
    let forms = editor.initializer_forms()?;
    let [experts, hidden, _] = forms.get(&node.input[source::OUT_WEIGHTS])?.dims[..] else {
        return None;
    };
    let inputs = [source::TOKENS, source::SCORES, source::ROUTER_WEIGHTS].map(|at| node.input[at].clone());
    let output = node.output.first()?.clone();
    let weights: HashSet<&str> = node.input[source::IN_WEIGHTS..source::ROUTER_WEIGHTS]
        .iter()
        .map(String::as_str)
        .collect();
    let value = |name: &str| {
        let dims = ["phi_edge.tokens", &format!("phi_edge.values.{name}")];
        ValueInfoProto::tensor(name, data_type::FLOAT, &dims).encode_to_vec()
    };
    let mut extra: Vec<(u32, Vec<u8>)> = Vec::new();
    extra.extend(inputs.iter().map(|name| (graph_field::INPUT, value(name))));
    extra.push((graph_field::OUTPUT, value(&output)));
    let graph = editor.write(
        |part| {
            Some(match part {
                GraphField::Node(at) if at == index => FieldEdit::Keep,
                GraphField::Named(graph_field::INITIALIZER, name) if weights.contains(name) => {
                    FieldEdit::Keep
                }
                GraphField::Node(_) | GraphField::Named(..) => FieldEdit::Drop,
                GraphField::Other => FieldEdit::Keep,
            })
        },
        &extra,
    )?;
    Some(SingleExperts {
        graph,
        inputs,
        output,
        hidden: usize::try_from(hidden).ok()?,
        experts: usize::try_from(experts).ok()?,
    })
}

/// The operator's inputs.
fn inputs(node: &NodeProto, with_lengths: bool) -> Vec<String> {
    let from = |at: usize| node.input.get(at).cloned().unwrap_or_default();
    let mut inputs = vec![String::new(); input::OUT_ZEROS + 1];
    for (to, at) in [
        (input::TOKENS, source::TOKENS),
        (input::SCORES, source::SCORES),
        (input::ROUTER_WEIGHTS, source::ROUTER_WEIGHTS),
        (input::IN_WEIGHTS, source::IN_WEIGHTS),
        (input::IN_SCALES, source::IN_SCALES),
        (input::OUT_WEIGHTS, source::OUT_WEIGHTS),
        (input::OUT_SCALES, source::OUT_SCALES),
        (input::IN_ZEROS, source::IN_ZEROS),
        (input::OUT_ZEROS, source::OUT_ZEROS),
    ] {
        inputs[to] = from(at);
    }
    if with_lengths {
        LENGTHS.clone_into(&mut inputs[input::LENGTHS]);
    }
    inputs
}

/// The nodes behind the choice of tokens whose logits are wanted: what comes there are no rows with padding any more.
fn of_chosen_tokens(nodes: &[NodeProto]) -> HashSet<usize> {
    let mut names: HashSet<&str> = HashSet::new();
    let mut found = HashSet::new();
    let is_chosen = |name: &str| name.starts_with(CHOSEN_HIDDEN);
    // Nodes that an edit adds stand at the end, so one pass in their order may miss some.
    loop {
        let before = found.len();
        for (at, node) in nodes.iter().enumerate() {
            if node
                .input
                .iter()
                .any(|name| is_chosen(name) || names.contains(name.as_str()))
                && found.insert(at)
            {
                names.extend(node.outputs());
            }
        }
        if found.len() == before {
            return found;
        }
    }
}

/// Whether the operator supports `node`. `held` are the element types of the graph's initializers.
fn fits(node: &NodeProto, held: &HashMap<String, i32>) -> bool {
    if node.op_type != "QMoE" || node.outputs().count() != 1 {
        return false;
    }
    let whole = |name: &str| node.attribute(name).map(|attribute| attribute.i);
    let attributes = node.attribute.iter().all(|own| match own.name.as_str() {
        "k" => (1..=MAX_CHOSEN).contains(&own.i),
        "expert_weight_bits" | "accuracy_level" => own.i == 4,
        "swiglu_fusion" => own.i == 1,
        "block_size" => takes_block(own.i),
        "activation_type" => own.s.as_ref() == b"swiglu",
        "activation_alpha" | "activation_beta" => own.f.is_finite(),
        "swiglu_limit" => own.f == f32::INFINITY,
        "weights_prepacked" | "normalize_routing_weights" | "use_sparse_mixer" => own.i == 0,
        _ => false,
    });
    // What is left out has another default.
    let named = [
        "k",
        "accuracy_level",
        "swiglu_fusion",
        "block_size",
        "activation_type",
    ];
    let all_named = named.iter().all(|name| node.attribute(name).is_some())
        && ["activation_alpha", "activation_beta"]
            .iter()
            .all(|name| node.attribute(name).is_some())
        && whole("weights_prepacked") == Some(0);
    let name = |at: usize| node.input.get(at).map_or("", String::as_str);
    let of = |at: usize| held.get(name(at)).copied();
    let is = |at: usize, data_type: i32| of(at) == Some(data_type);
    let zeros = [source::IN_ZEROS, source::OUT_ZEROS];
    let computed = [source::TOKENS, source::SCORES, source::ROUTER_WEIGHTS];
    let inputs = computed
        .iter()
        .all(|&at| !name(at).is_empty() && of(at).is_none())
        && [source::IN_WEIGHTS, source::OUT_WEIGHTS]
            .iter()
            .all(|&at| is(at, data_type::UINT8))
        && [source::IN_SCALES, source::OUT_SCALES]
            .iter()
            .all(|&at| is(at, data_type::FLOAT))
        && (zeros.iter().all(|&at| name(at).is_empty()) || zeros.iter().all(|&at| is(at, data_type::UINT8)));
    // Biases, third matrices.
    let others = [4, 7, 8, 9, 10, 13].iter().all(|&at| name(at).is_empty());
    attributes && all_named && inputs && others && node.input.len() == source::ROUTER_WEIGHTS + 1
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::prepare::test_graphs::{graph_with_outputs, read};

    fn text(name: &str, text: &'static str) -> AttributeProto {
        AttributeProto {
            name: name.to_owned(),
            s: Bytes::from_static(text.as_bytes()),
            r#type: 3,
            ..AttributeProto::default()
        }
    }

    fn float(name: &str, f: f32) -> AttributeProto {
        AttributeProto {
            name: name.to_owned(),
            f,
            r#type: AttributeProto::FLOAT,
            ..AttributeProto::default()
        }
    }

    fn node() -> NodeProto {
        let inputs = [
            "x", "scores", "w1", "s1", "", "w2", "s2", "", "", "", "", "", "", "", "weights",
        ];
        let mut node = NodeProto::new("QMoE", &inputs, "y");
        node.attribute = vec![
            AttributeProto::int("k", 2),
            AttributeProto::int("block_size", 32),
            AttributeProto::int("accuracy_level", 4),
            AttributeProto::int("expert_weight_bits", 4),
            AttributeProto::int("swiglu_fusion", 1),
            AttributeProto::int("weights_prepacked", 0),
            text("activation_type", "swiglu"),
            float("activation_alpha", 1.0),
            float("activation_beta", 0.0),
        ];
        node
    }

    fn held() -> HashMap<String, i32> {
        let bytes = ["w1", "w2", "z1", "z2"].map(|name| (name.to_owned(), data_type::UINT8));
        let floats = ["s1", "s2", "b1"].map(|name| (name.to_owned(), data_type::FLOAT));
        bytes.into_iter().chain(floats).collect()
    }

    #[test]
    fn what_the_operator_does_not_compute_is_left_alone() {
        let check = |change: fn(&mut NodeProto), expected: bool| {
            let mut node = node();
            change(&mut node);
            assert_eq!(fits(&node, &held()), expected, "{node:?}");
        };
        check(|_| (), true);
        check(
            |node| node.input[11..13].clone_from_slice(&["z1".into(), "z2".into()]),
            true,
        );
        check(|node| node.input[11] = "z1".into(), false);
        check(|node| node.input[4] = "b1".into(), false);
        check(|node| node.input.truncate(14), false);
        check(|node| node.input[2] = "computed".into(), false);
        check(|node| node.input[14] = "w1".into(), false);
        check(|node| node.attribute[0].i = 1 << 40, false);
        check(|node| node.attribute[1].i = 512, false);
        check(|node| node.attribute[2].i = 0, false);
        check(|node| node.attribute[3].i = 8, false);
        check(|node| node.attribute[4].i = 2, false);
        check(|node| node.attribute[6].s = Bytes::from_static(b"silu"), false);
        check(
            |node| node.attribute.push(AttributeProto::int("use_sparse_mixer", 1)),
            false,
        );
        check(|node| node.attribute.push(float("swiglu_limit", 7.0)), false);
        check(|node| drop(node.attribute.remove(5)), false);
        check(|node| drop(node.attribute.remove(7)), false);
        check(|node| node.op_type = "MoE".into(), false);
    }

    #[test]
    fn padding_goes_through_no_expert_where_there_may_be_some() {
        let experts = |lengths: bool| {
            let inputs = inputs(&node(), lengths);
            (
                inputs[input::TOKENS].clone(),
                inputs[input::ROUTER_WEIGHTS].clone(),
                inputs[input::LENGTHS].clone(),
            )
        };
        let name = |name: &str| name.to_owned();
        assert_eq!(experts(true), (name("x"), name("weights"), name(LENGTHS)));
        assert_eq!(experts(false), (name("x"), name("weights"), String::new()));
        let nodes = [
            NodeProto::new("Add", &["chosen", "b"], "late"),
            NodeProto::new("Add", &["phi_edge.chosen_hidden.0", "b"], "chosen"),
            NodeProto::new("Add", &["x", "b"], "y"),
        ];
        assert_eq!(of_chosen_tokens(&nodes), HashSet::from([0, 1]));
    }

    #[test]
    fn a_graph_without_experts_is_left_alone() {
        let graph = graph_with_outputs(&["y"], vec![NodeProto::new("MatMul", &["x", "w"], "y")]);
        assert_eq!(replace_experts(&graph), None);
        assert!(single_experts(&graph).is_none());
        assert_eq!(read(&graph).node.len(), 1);
    }
}
