//! Edits of a graph in memory, before it is opened. The files are never touched.
//!
//! An edit works on the protobuf's bytes: what it does not change is copied as it stands, known or not (protobuf
//! encoding specification; field numbers of onnx.proto). Where a graph does not look as expected it is left alone.

use std::ops::Range;

use prost::Message;

/// The input that says which logits are wanted: indices into the run's tokens, rows one after the other.
pub(crate) const LOGITS_ROWS: &str = "phi_edge.logits_rows";

/// Nodes that may stand before the logits: they treat each token for itself.
const PROJECTIONS: [&str; 2] = ["MatMul", "MatMulNBits"];

/// Has the last matrix multiplied only with the tokens whose logits are wanted: `logits` becomes `[1, wanted, vocab]`.
///
/// Of a prefill chunk at most one is wanted, and the matrix is the largest of the graph. `None`: the graph is of
/// another form.
pub(crate) fn choose_logits(model: &[u8], logits: &str) -> Option<Vec<u8>> {
    let graph = fields(model)?
        .into_iter()
        .find(|field| field.number == model_field::GRAPH)?;
    let body = &model[graph.payload.clone()];
    let parts = fields(body)?;
    let (index, hidden) = parts.iter().enumerate().find_map(|(index, part)| {
        if part.number != graph_field::NODE {
            return None;
        }
        let node = Node::decode(&body[part.payload.clone()]).ok()?;
        let wanted = node.output.first().is_some_and(|output| output == logits);
        let fits = wanted && PROJECTIONS.contains(&node.op_type.as_str());
        fits.then(|| node.input.first().cloned())
            .flatten()
            .map(|hidden| (index, hidden))
    })?;
    let mut edited = Vec::with_capacity(body.len() + 512);
    for (at, part) in parts.iter().enumerate() {
        if at == index {
            let node = with_first_input(&body[part.payload.clone()], CHOSEN)?;
            put(&mut edited, graph_field::NODE, &node);
        } else {
            edited.extend_from_slice(&body[part.whole.clone()]);
        }
    }
    // [rows, width, hidden] as [1, rows * width, hidden]: 0 keeps a dimension, -1 takes the rest.
    let shape = Tensor {
        dims: vec![3],
        data_type: INT64,
        int64_data: vec![1, -1, 0],
        name: FLAT_SHAPE.into(),
    };
    put(&mut edited, graph_field::INITIALIZER, &shape.encode_to_vec());
    let flat = Node::new("Reshape", &[&hidden, FLAT_SHAPE], FLAT);
    put(&mut edited, graph_field::NODE, &flat.encode_to_vec());
    let mut chosen = Node::new("Gather", &[FLAT, LOGITS_ROWS], CHOSEN);
    chosen.attribute.push(Attribute {
        name: "axis".into(),
        i: 1,
        kind: Attribute::INT,
    });
    put(&mut edited, graph_field::NODE, &chosen.encode_to_vec());
    put(
        &mut edited,
        graph_field::INPUT,
        &Value::vector(LOGITS_ROWS, "wanted_logits").encode_to_vec(),
    );
    let mut model_out = Vec::with_capacity(model.len() + 512);
    model_out.extend_from_slice(&model[..graph.whole.start]);
    put(&mut model_out, model_field::GRAPH, &edited);
    model_out.extend_from_slice(&model[graph.whole.end..]);
    Some(model_out)
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

/// A node with another first input; all else as it stands.
fn with_first_input(node: &[u8], input: &str) -> Option<Vec<u8>> {
    const INPUT: u32 = 1;
    let mut out = Vec::with_capacity(node.len() + input.len());
    let mut first = true;
    for field in fields(node)? {
        if field.number == INPUT && std::mem::take(&mut first) {
            put(&mut out, INPUT, input.as_bytes());
        } else {
            out.extend_from_slice(&node[field.whole]);
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

    fn model(last: &str) -> Vec<u8> {
        let graph = Graph {
            node: vec![
                Node::new("Gather", &["table", "ids"], "hidden"),
                Node::new(last, &["hidden", "weight"], "logits"),
            ],
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

    #[test]
    fn the_projection_gets_the_chosen_tokens() {
        let edited = choose_logits(&model("MatMulNBits"), "logits").unwrap();
        let edited = Model::decode(edited.as_slice()).unwrap();
        assert_eq!((edited.ir_version, edited.producer.as_str()), (10, "test"));
        let graph = edited.graph.unwrap();
        assert_eq!(graph.node[1].input, [CHOSEN, "weight"]);
        assert_eq!(graph.node[2].input, ["hidden", FLAT_SHAPE]);
        assert_eq!(graph.node[3].input, [FLAT, LOGITS_ROWS]);
        assert_eq!(graph.input[0].name, LOGITS_ROWS);
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
