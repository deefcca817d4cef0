//! The end of a graph: what follows its last attention.

use std::collections::{BTreeSet, HashMap};

use crate::onnx_proto::{NodeProto, TensorProto, graph_field};
use crate::prepare::graph_editor::GraphEditor;

/// The end of a graph.
pub(crate) struct Tail {
    /// Indices of its nodes.
    pub(crate) nodes: BTreeSet<usize>,
    /// Its inputs from the rest of the graph, one vector a token each.
    pub(crate) sources: Vec<String>,
}

impl Tail {
    /// Everything after the last attention. Its sources are the attention's result and the residual stream beside it.
    pub(crate) fn of(editor: &GraphEditor, logits: &str) -> Option<Self> {
        let nodes = &editor.nodes;
        let attention = *attentions(editor)?.last()?;
        let produced: HashMap<&str, usize> = nodes
            .iter()
            .enumerate()
            .flat_map(|(at, node)| node.outputs().map(move |output| (output, at)))
            .collect();
        let mut inside = BTreeSet::new();
        let mut open = vec![nodes[attention].output.first()?.as_str()];
        while let Some(name) = open.pop() {
            for (at, node) in nodes.iter().enumerate() {
                if node.input.iter().any(|input| input == name) && inside.insert(at) {
                    open.extend(node.outputs());
                }
            }
        }
        if !inside.contains(produced.get(logits)?) {
            return None;
        }
        let mut sources: Vec<String> = Vec::new();
        for input in inside.iter().flat_map(|&at| &nodes[at].input) {
            // Weights come from no node, or from a constant.
            let from = produced.get(input.as_str()).filter(|from| !inside.contains(from));
            if from.is_some_and(|&from| nodes[from].op_type != "Constant") && !sources.contains(input) {
                sources.push(input.clone());
            }
        }
        (sources.len() == 2).then_some(Self {
            nodes: inside,
            sources,
        })
    }

    /// The tail that is the last matrix alone, with its bias if it has one.
    pub(crate) fn projection(nodes: &[NodeProto], logits: &str) -> Option<Self> {
        let producer = |name: &str| {
            nodes
                .iter()
                .position(|node| node.outputs().any(|output| output == name))
        };
        let last = producer(logits)?;
        let mut inside = BTreeSet::from([last]);
        let mut matrix = last;
        if nodes[last].op_type == "Add" {
            // The bias comes from no node.
            let mut summands = nodes[last].input.iter().filter_map(|name| producer(name));
            matrix = summands.next().filter(|_| summands.next().is_none())?;
            inside.insert(matrix);
        }
        ["MatMul", "MatMulNBits"]
            .contains(&nodes[matrix].op_type.as_str())
            .then_some(())?;
        Some(Self {
            nodes: inside,
            sources: vec![nodes[matrix].input.first()?.clone()],
        })
    }

    /// Whether each of its nodes treats each token by itself, as far as operators, axes and shapes tell.
    pub(crate) fn is_by_token(&self, nodes: &[NodeProto]) -> bool {
        self.nodes.iter().all(|&at| is_by_token(&nodes[at], nodes))
    }
}

/// The attention of each layer, in the order of computation: the nodes that write its keys and values to the graph's outputs.
pub(crate) fn attentions(editor: &GraphEditor) -> Option<Vec<usize>> {
    let outputs = editor.names(graph_field::OUTPUT)?;
    let writes_keys_and_values = |node: &NodeProto| {
        node.output
            .iter()
            .skip(1)
            .filter(|name| outputs.contains(name.as_str()))
            .count()
            == 2
    };
    let nodes = editor.nodes.iter().enumerate();
    let found = nodes.filter(|(_, node)| writes_keys_and_values(node));
    Some(found.map(|(at, _)| at).collect())
}

/// Operators that compute each element, or each vector along the last axis, by itself.
const BY_TOKEN: [&str; 24] = [
    "Abs",
    "Add",
    "Cast",
    "Div",
    "Equal",
    "Gelu",
    "Greater",
    "Less",
    "MatMul",
    "MatMulNBits",
    "Max",
    "Min",
    "MoE",
    "Mul",
    "QMoE",
    "QuickGelu",
    "Sigmoid",
    "SimplifiedLayerNormalization",
    "SkipLayerNormalization",
    "SkipSimplifiedLayerNormalization",
    "Split",
    "Sub",
    "Tanh",
    "Where",
];

/// Operators that work along an axis.
const ALONG_AXIS: [&str; 6] = [
    "LayerNormalization",
    "ReduceMax",
    "ReduceMean",
    "ReduceSum",
    "Softmax",
    "TopK",
];

fn is_by_token(node: &NodeProto, nodes: &[NodeProto]) -> bool {
    let operator = node.op_type.as_str();
    if ALONG_AXIS.contains(&operator) {
        return along_last_axis(node, nodes);
    }
    if operator == "Reshape" {
        // 0 keeps the tokens' dimension, -1 puts rows one behind the other.
        let shape = node.input.get(1).and_then(|name| constant(nodes, name));
        return shape.is_some_and(|shape| shape.first().is_some_and(|first| *first <= 0));
    }
    BY_TOKEN.contains(&operator)
}

fn along_last_axis(node: &NodeProto, nodes: &[NodeProto]) -> bool {
    let axis = match (node.op_type.as_str(), node.attribute("axis")) {
        (_, Some(axis)) => Some(axis.i),
        ("LayerNormalization" | "Softmax" | "TopK", None) => Some(-1),
        (_, None) => node
            .input
            .get(1)
            .and_then(|name| match constant(nodes, name)?[..] {
                [axis] => Some(axis),
                _ => None,
            }),
    };
    axis == Some(-1)
}

/// The whole numbers of a constant.
fn constant(nodes: &[NodeProto], name: &str) -> Option<Vec<i64>> {
    let node = nodes
        .iter()
        .find(|node| node.op_type == "Constant" && node.outputs().any(|output| output == name))?;
    let tensor: &TensorProto = node.attribute("value")?.t.as_ref()?;
    if !tensor.int64_data.is_empty() {
        return Some(tensor.int64_data.clone());
    }
    let (numbers, rest) = tensor.raw_data.as_chunks::<8>();
    rest.is_empty()
        .then(|| numbers.iter().map(|bytes| i64::from_le_bytes(*bytes)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::onnx_proto::{AttributeProto, data_type};

    fn constant_node(name: &str, numbers: &[i64]) -> NodeProto {
        let mut node = NodeProto::new("Constant", &[], name);
        let mut value = AttributeProto::int("value", 0);
        value.t = Some(TensorProto {
            data_type: data_type::INT64,
            dims: vec![1],
            raw_data: numbers
                .iter()
                .flat_map(|number| number.to_le_bytes())
                .collect::<Vec<u8>>()
                .into(),
            ..TensorProto::default()
        });
        node.attribute.push(value);
        node
    }

    #[test]
    fn the_axis_decides_what_is_by_token() {
        let nodes = [
            constant_node("last", &[-1]),
            constant_node("second", &[1]),
            constant_node("flat", &[-1, 16]),
            constant_node("swapped", &[16, -1]),
        ];
        let check = |operator: &str, inputs: &[&str], axis: Option<i64>, expected: bool| {
            let mut node = NodeProto::new(operator, inputs, "y");
            node.attribute
                .extend(axis.map(|axis| AttributeProto::int("axis", axis)));
            assert_eq!(
                is_by_token(&node, &nodes),
                expected,
                "{operator} {inputs:?} {axis:?}"
            );
        };
        check("Add", &["x", "b"], None, true);
        check("Transpose", &["x"], None, false);
        check("Softmax", &["x"], None, true);
        check("Softmax", &["x"], Some(-1), true);
        check("Softmax", &["x"], Some(1), false);
        check("ReduceMax", &["x", "last"], None, true);
        check("ReduceMax", &["x", "second"], None, false);
        check("ReduceMean", &["x"], None, false);
        check("Reshape", &["x", "flat"], None, true);
        check("Reshape", &["x", "swapped"], None, false);
        check("Reshape", &["x", "computed"], None, false);
    }

    #[test]
    fn the_projection_has_its_bias() {
        let nodes = |last: &[&str]| {
            [
                NodeProto::new("Gather", &["table", "ids"], "hidden"),
                NodeProto::new("MatMul", &["hidden", "weight"], "product"),
                NodeProto::new("Add", last, "logits"),
            ]
        };
        let tail = Tail::projection(&nodes(&["product", "bias"]), "logits").unwrap();
        assert_eq!(
            (tail.nodes, tail.sources),
            (BTreeSet::from([1, 2]), vec!["hidden".to_owned()])
        );
        assert!(Tail::projection(&nodes(&["product", "hidden"]), "logits").is_none());
    }
}
