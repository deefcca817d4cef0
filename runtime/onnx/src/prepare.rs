//! Edits of a graph in memory, before it is opened. The files are never touched.
//!
//! An edit works on the protobuf's bytes: what it does not change is copied as it stands, known or not (protobuf
//! encoding specification; field numbers of onnx.proto). Where a graph does not look as expected it is left alone.

use std::collections::{BTreeSet, HashMap};
use std::ops::Range;

use prost::Message;

/// The input that says which logits are wanted: indices into the run's tokens, rows one after the other.
pub(crate) const LOGITS_ROWS: &str = "phi_edge.logits_rows";

/// What may stand between the last attention and the logits: all that treats each token for itself.
const BY_TOKEN: [&str; 12] = [
    "Add",
    "Cast",
    "Gelu",
    "MatMul",
    "MatMulNBits",
    "Mul",
    "QuickGelu",
    "Sigmoid",
    "SimplifiedLayerNormalization",
    "SkipSimplifiedLayerNormalization",
    "Split",
    "Tanh",
];

/// Has what follows the last attention computed only for the tokens whose logits are wanted: `logits` becomes
/// `[1, wanted, vocab]`.
///
/// Of a prefill chunk at most one is wanted, and the last matrix is the largest of the graph; most of the last layer
/// is spared as well. Keys and values are computed for all, before. `None`: the graph is of another form.
pub(crate) fn choose_logits(model: &[u8], logits: &str) -> Option<Vec<u8>> {
    let graph = fields(model)?
        .into_iter()
        .find(|field| field.number == model_field::GRAPH)?;
    let body = &model[graph.payload.clone()];
    let parts = fields(body)?;
    let nodes: Vec<(usize, Node)> = parts
        .iter()
        .enumerate()
        .filter(|(_, part)| part.number == graph_field::NODE)
        .map(|(at, part)| Some((at, Node::decode(&body[part.payload.clone()]).ok()?)))
        .collect::<Option<_>>()?;
    let nodes_only: Vec<&Node> = nodes.iter().map(|(_, node)| node).collect();
    let tail = tail(&nodes_only, logits).or_else(|| projection(&nodes_only, logits))?;
    let chosen = |name: &str| {
        let at = tail.sources.iter().position(|source| source == name)?;
        Some(format!("{CHOSEN}.{at}"))
    };
    let mut edited = Vec::with_capacity(body.len() + 1024);
    let mut next_node = 0;
    for part in &parts {
        if part.number == graph_field::NODE {
            let inside = tail.nodes.contains(&next_node);
            next_node += 1;
            if inside {
                let node = with_inputs(&body[part.payload.clone()], chosen)?;
                put(&mut edited, graph_field::NODE, &node);
                continue;
            }
        }
        edited.extend_from_slice(&body[part.whole.clone()]);
    }
    // [rows, width, hidden] as [1, rows * width, hidden]: 0 keeps a dimension, -1 takes the rest.
    let shape = Tensor {
        dims: vec![3],
        data_type: INT64,
        int64_data: vec![1, -1, 0],
        name: FLAT_SHAPE.into(),
    };
    put(&mut edited, graph_field::INITIALIZER, &shape.encode_to_vec());
    for (at, source) in tail.sources.iter().enumerate() {
        let (flat, chosen) = (format!("{FLAT}.{at}"), format!("{CHOSEN}.{at}"));
        let reshape = Node::new("Reshape", &[source, FLAT_SHAPE], &flat);
        put(&mut edited, graph_field::NODE, &reshape.encode_to_vec());
        let mut gather = Node::new("Gather", &[&flat, LOGITS_ROWS], &chosen);
        gather.attribute.push(Attribute {
            name: "axis".into(),
            i: 1,
            kind: Attribute::INT,
        });
        put(&mut edited, graph_field::NODE, &gather.encode_to_vec());
    }
    put(
        &mut edited,
        graph_field::INPUT,
        &Value::vector(LOGITS_ROWS, "wanted_logits").encode_to_vec(),
    );
    let mut model_out = Vec::with_capacity(model.len() + 1024);
    model_out.extend_from_slice(&model[..graph.whole.start]);
    put(&mut model_out, model_field::GRAPH, &edited);
    model_out.extend_from_slice(&model[graph.whole.end..]);
    Some(model_out)
}

/// The end of a graph that is computed for chosen tokens alone.
struct Tail {
    /// Indices of its nodes.
    nodes: BTreeSet<usize>,
    /// What it takes from the rest of the graph, one vector a token each.
    sources: Vec<String>,
}

/// All that follows the last attention, if all of it treats each token for itself.
fn tail(nodes: &[&Node], logits: &str) -> Option<Tail> {
    let attention = nodes
        .iter()
        .rposition(|node| node.op_type == "GroupQueryAttention")?;
    let produced: HashMap<&str, usize> = nodes
        .iter()
        .enumerate()
        .flat_map(|(at, node)| node.output.iter().map(move |output| (output.as_str(), at)))
        .filter(|(output, _)| !output.is_empty())
        .collect();
    let mut inside = BTreeSet::new();
    let mut open = vec![nodes[attention].output.first()?.as_str()];
    while let Some(name) = open.pop() {
        for (at, node) in nodes.iter().enumerate() {
            if node.input.iter().any(|input| input == name) && inside.insert(at) {
                open.extend(
                    node.output
                        .iter()
                        .map(String::as_str)
                        .filter(|output| !output.is_empty()),
                );
            }
        }
    }
    let by_token = inside
        .iter()
        .all(|&at| BY_TOKEN.contains(&nodes[at].op_type.as_str()));
    if !by_token || !inside.contains(produced.get(logits)?) {
        return None;
    }
    let mut sources: Vec<String> = Vec::new();
    for input in inside.iter().flat_map(|&at| &nodes[at].input) {
        // Weights come from no node, or from one that only holds them.
        let from = produced.get(input.as_str()).filter(|from| !inside.contains(from));
        if from.is_some_and(|&from| nodes[from].op_type != "Constant") && !sources.contains(input) {
            sources.push(input.clone());
        }
    }
    // The attention's result and the stream beside it.
    (sources.len() == 2).then_some(Tail {
        nodes: inside,
        sources,
    })
}

/// The last matrix alone.
fn projection(nodes: &[&Node], logits: &str) -> Option<Tail> {
    let at = nodes
        .iter()
        .position(|node| node.output.first().is_some_and(|output| output == logits))?;
    if !["MatMul", "MatMulNBits"].contains(&nodes[at].op_type.as_str()) {
        return None;
    }
    Some(Tail {
        nodes: BTreeSet::from([at]),
        sources: vec![nodes[at].input.first()?.clone()],
    })
}

const FLAT_SHAPE: &str = "phi_edge.flat_shape";
const FLAT: &str = "phi_edge.flat_hidden";
const CHOSEN: &str = "phi_edge.chosen_hidden";
const INT64: i32 = 7;

mod model_field {
    pub(super) const GRAPH: u32 = 7;
}

mod graph_field {
    pub(super) const NODE: u32 = 1;
    pub(super) const INITIALIZER: u32 = 5;
    pub(super) const INPUT: u32 = 11;
}

/// One field of a message: where it stands, and what it carries if it is of length-delimited form.
struct Field {
    number: u32,
    whole: Range<usize>,
    payload: Range<usize>,
}

/// The fields of a message in their order; `None` if the bytes are none.
fn fields(bytes: &[u8]) -> Option<Vec<Field>> {
    let mut found = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        let start = at;
        let tag = varint(bytes, &mut at)?;
        let payload = match tag & 7 {
            0 => {
                varint(bytes, &mut at)?;
                at..at
            }
            1 => skip(bytes, &mut at, 8)?,
            2 => {
                let length = usize::try_from(varint(bytes, &mut at)?).ok()?;
                skip(bytes, &mut at, length)?
            }
            5 => skip(bytes, &mut at, 4)?,
            _ => return None,
        };
        found.push(Field {
            number: u32::try_from(tag >> 3).ok()?,
            whole: start..at,
            payload,
        });
    }
    Some(found)
}

fn skip(bytes: &[u8], at: &mut usize, length: usize) -> Option<Range<usize>> {
    let range = *at..at.checked_add(length)?;
    bytes.get(range.clone())?;
    *at = range.end;
    Some(range)
}

fn varint(bytes: &[u8], at: &mut usize) -> Option<u64> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let byte = *bytes.get(*at)?;
        *at += 1;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

/// Appends a length-delimited field.
fn put(out: &mut Vec<u8>, number: u32, payload: &[u8]) {
    prost::encoding::encode_varint(u64::from(number << 3 | 2), out);
    prost::encoding::encode_varint(payload.len() as u64, out);
    out.extend_from_slice(payload);
}

/// A node with other inputs, where `other` names one; all else as it stands.
fn with_inputs(node: &[u8], other: impl Fn(&str) -> Option<String>) -> Option<Vec<u8>> {
    const INPUT: u32 = 1;
    let mut out = Vec::with_capacity(node.len() + 64);
    for field in fields(node)? {
        let name = std::str::from_utf8(&node[field.payload.clone()])
            .ok()
            .filter(|_| field.number == INPUT);
        match name.and_then(&other) {
            Some(other) => put(&mut out, INPUT, other.as_bytes()),
            None => out.extend_from_slice(&node[field.whole]),
        }
    }
    Some(out)
}

#[derive(Clone, PartialEq, prost::Message)]
struct Node {
    #[prost(string, repeated, tag = "1")]
    input: Vec<String>,
    #[prost(string, repeated, tag = "2")]
    output: Vec<String>,
    #[prost(string, tag = "3")]
    name: String,
    #[prost(string, tag = "4")]
    op_type: String,
    #[prost(message, repeated, tag = "5")]
    attribute: Vec<Attribute>,
}

impl Node {
    fn new(op_type: &str, inputs: &[&str], output: &str) -> Self {
        Self {
            input: inputs.iter().map(ToString::to_string).collect(),
            output: vec![output.to_owned()],
            name: format!("{output}/{op_type}"),
            op_type: op_type.to_owned(),
            attribute: Vec::new(),
        }
    }
}

#[derive(Clone, PartialEq, prost::Message)]
struct Attribute {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(int64, tag = "3")]
    i: i64,
    #[prost(int32, tag = "20")]
    kind: i32,
}

impl Attribute {
    const INT: i32 = 2;
}

#[derive(Clone, PartialEq, prost::Message)]
struct Tensor {
    #[prost(int64, repeated, tag = "1")]
    dims: Vec<i64>,
    #[prost(int32, tag = "2")]
    data_type: i32,
    #[prost(int64, repeated, tag = "7")]
    int64_data: Vec<i64>,
    #[prost(string, tag = "8")]
    name: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Value {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(message, optional, tag = "2")]
    kind: Option<Kind>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Kind {
    #[prost(message, optional, tag = "1")]
    tensor: Option<TensorKind>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct TensorKind {
    #[prost(int32, tag = "1")]
    element: i32,
    #[prost(message, optional, tag = "2")]
    shape: Option<Shape>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Shape {
    #[prost(message, repeated, tag = "1")]
    dims: Vec<Dim>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Dim {
    #[prost(string, tag = "2")]
    name: String,
}

impl Value {
    /// An int64 vector of any length.
    fn vector(name: &str, dim: &str) -> Self {
        let dims = vec![Dim { name: dim.to_owned() }];
        let tensor = TensorKind {
            element: INT64,
            shape: Some(Shape { dims }),
        };
        Self {
            name: name.to_owned(),
            kind: Some(Kind { tensor: Some(tensor) }),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, PartialEq, prost::Message)]
    struct Graph {
        #[prost(message, repeated, tag = "1")]
        node: Vec<Node>,
        #[prost(string, tag = "2")]
        name: String,
        #[prost(message, repeated, tag = "11")]
        input: Vec<Value>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    struct Model {
        #[prost(int64, tag = "1")]
        ir_version: i64,
        #[prost(message, optional, tag = "7")]
        graph: Option<Graph>,
        #[prost(string, tag = "2")]
        producer: String,
    }

    fn graph_of(node: Vec<Node>) -> Vec<u8> {
        let graph = Graph {
            node,
            name: "main".into(),
            input: Vec::new(),
        };
        let model = Model {
            ir_version: 10,
            graph: Some(graph),
            producer: "test".into(),
        };
        model.encode_to_vec()
    }

    fn model(last: &str) -> Vec<u8> {
        graph_of(vec![
            Node::new("Gather", &["table", "ids"], "hidden"),
            Node::new(last, &["hidden", "weight"], "logits"),
        ])
    }

    #[test]
    fn without_an_attention_the_projection_alone_gets_the_chosen_tokens() {
        let edited = choose_logits(&model("MatMulNBits"), "logits").unwrap();
        let edited = Model::decode(edited.as_slice()).unwrap();
        assert_eq!((edited.ir_version, edited.producer.as_str()), (10, "test"));
        let graph = edited.graph.unwrap();
        assert_eq!(graph.node[1].input, ["phi_edge.chosen_hidden.0", "weight"]);
        assert_eq!(graph.node[2].input, ["hidden", FLAT_SHAPE]);
        assert_eq!(graph.node[3].input, ["phi_edge.flat_hidden.0", LOGITS_ROWS]);
        assert_eq!(graph.input[0].name, LOGITS_ROWS);
    }

    fn layer(between: &str) -> Vec<u8> {
        graph_of(vec![
            Node::new("Gather", &["table", "ids"], "stream"),
            Node::new("MatMul", &["stream", "w1"], "qkv"),
            Node::new("GroupQueryAttention", &["qkv", "past"], "attended"),
            Node::new("MatMul", &["attended", "w2"], "projected"),
            Node::new(
                "SkipSimplifiedLayerNormalization",
                &["stream", "projected", "w3"],
                "normed",
            ),
            Node::new(between, &["normed"], "active"),
            Node::new("MatMul", &["active", "w4"], "logits"),
        ])
    }

    #[test]
    fn what_follows_the_last_attention_gets_the_chosen_tokens() {
        let edited = choose_logits(&layer("Sigmoid"), "logits").unwrap();
        let graph = Model::decode(edited.as_slice()).unwrap().graph.unwrap();
        assert_eq!(
            graph.node[1].input,
            ["stream", "w1"],
            "keys and values are computed for all"
        );
        assert_eq!(graph.node[3].input, ["phi_edge.chosen_hidden.0", "w2"]);
        assert_eq!(
            graph.node[4].input,
            ["phi_edge.chosen_hidden.1", "projected", "w3"]
        );
        assert_eq!(graph.node[6].input, ["active", "w4"]);
        assert_eq!(graph.node.len(), 7 + 4);
    }

    #[test]
    fn what_mixes_tokens_is_not_cut() {
        let edited = choose_logits(&layer("ReduceMean"), "logits").unwrap();
        let graph = Model::decode(edited.as_slice()).unwrap().graph.unwrap();
        assert_eq!(graph.node[3].input, ["attended", "w2"]);
        assert_eq!(graph.node[6].input, ["phi_edge.chosen_hidden.0", "w4"]);
    }

    #[test]
    fn the_exporters_graphs_are_cut_behind_the_last_attention() {
        let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        for file in [
            "models/demo/model.onnx",
            "tests/fixtures/forms/2024/phi3-random-cpu-int4.onnx",
        ] {
            let edited = choose_logits(&std::fs::read(root.join(file)).unwrap(), "logits").unwrap();
            let graph = Model::decode(edited.as_slice()).unwrap().graph.unwrap();
            let gathers = graph
                .node
                .iter()
                .filter(|node| node.output[0].starts_with(CHOSEN))
                .count();
            assert_eq!(gathers, 2, "{file}");
        }
    }

    #[test]
    fn other_forms_are_left_alone() {
        assert_eq!(choose_logits(&model("Softmax"), "logits"), None);
        assert_eq!(choose_logits(&model("MatMul"), "scores"), None);
        assert_eq!(choose_logits(b"no protobuf at all", "logits"), None);
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), cut in 0usize..400) {
            let _ = choose_logits(&bytes, "logits");
            let whole = model("MatMul");
            let _ = choose_logits(&whole[..cut.min(whole.len())], "logits");
        }
    }
}
