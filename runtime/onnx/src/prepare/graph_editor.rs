//! An ONNX graph as protobuf bytes: read as far as an edit needs, written anew with what it changes.
//!
//! What an edit does not name is copied as it stands, known or not (protobuf encoding specification; field numbers of
//! onnx.proto).

use std::collections::HashMap;
use std::ops::Range;

use prost::Message;

/// A model taken apart down to the graph's fields.
pub(crate) struct GraphEditor<'a> {
    model: &'a [u8],
    /// The graph's field within `model`.
    graph: Range<usize>,
    body: &'a [u8],
    parts: Vec<Field>,
    /// The graph's nodes in their order.
    pub(crate) nodes: Vec<NodeProto>,
}

/// A field of the graph, as an edit sees it.
pub(crate) enum GraphField<'a> {
    /// The node of this index.
    Node(usize),
    /// An initializer's, input's, output's or value's name, under the field's number.
    Named(u32, &'a str),
    /// Anything else.
    Other,
}

/// What becomes of a field.
pub(crate) enum FieldEdit {
    Keep,
    Drop,
    /// The field with this content.
    Put(Vec<u8>),
}

impl<'a> GraphEditor<'a> {
    /// `None`: the bytes are no model.
    pub(crate) fn read(model: &'a [u8]) -> Option<Self> {
        let graph = fields(model)?
            .into_iter()
            .find(|field| field.number == model_field::GRAPH)?;
        let body = &model[graph.payload.clone()];
        let parts = fields(body)?;
        let nodes = parts
            .iter()
            .filter(|part| part.number == graph_field::NODE)
            .map(|part| NodeProto::decode(&body[part.payload.clone()]).ok())
            .collect::<Option<_>>()?;
        Some(Self {
            model,
            graph: graph.whole,
            body,
            parts,
            nodes,
        })
    }

    /// A node's bytes.
    pub(crate) fn node(&self, index: usize) -> Option<&'a [u8]> {
        let mut nodes = self.parts.iter().filter(|part| part.number == graph_field::NODE);
        nodes.nth(index).map(|part| &self.body[part.payload.clone()])
    }

    /// The element types of what the graph holds, by name.
    pub(crate) fn initializers(&self) -> Option<HashMap<String, i32>> {
        let parts = self.parts.iter();
        parts
            .filter(|part| part.number == graph_field::INITIALIZER)
            .map(|part| {
                let tensor = TensorHead::decode(&self.body[part.payload.clone()]).ok()?;
                Some((tensor.name, tensor.data_type))
            })
            .collect()
    }

    /// The element types of the graph's inputs, by name.
    pub(crate) fn inputs(&self) -> Option<HashMap<String, i32>> {
        let parts = self.parts.iter();
        parts
            .filter(|part| part.number == graph_field::INPUT)
            .map(|part| {
                let value = ValueInfoProto::decode(&self.body[part.payload.clone()]).ok()?;
                let element = value
                    .kind
                    .and_then(|kind| kind.tensor)
                    .map(|tensor| tensor.element);
                Some((value.name, element.unwrap_or(0)))
            })
            .collect()
    }

    /// The model with each field of its graph as `change` wants it, and `extra` fields behind them.
    pub(crate) fn write(
        &self,
        mut change: impl FnMut(GraphField<'_>) -> Option<FieldEdit>,
        extra: &[(u32, Vec<u8>)],
    ) -> Option<Vec<u8>> {
        let mut edited = Vec::with_capacity(self.body.len() + 1024);
        let mut next_node = 0;
        for field in &self.parts {
            let payload = &self.body[field.payload.clone()];
            let part = match field.number {
                graph_field::NODE => {
                    next_node += 1;
                    GraphField::Node(next_node - 1)
                }
                graph_field::INITIALIZER => GraphField::Named(field.number, name_of(payload, TENSOR_NAME)?),
                graph_field::INPUT | graph_field::OUTPUT | graph_field::VALUE_INFO => {
                    GraphField::Named(field.number, name_of(payload, VALUE_NAME)?)
                }
                _ => GraphField::Other,
            };
            match change(part)? {
                FieldEdit::Keep => edited.extend_from_slice(&self.body[field.whole.clone()]),
                FieldEdit::Drop => {}
                FieldEdit::Put(content) => put(&mut edited, field.number, &content),
            }
        }
        for (number, content) in extra {
            put(&mut edited, *number, content);
        }
        let mut model = Vec::with_capacity(self.model.len() - self.body.len() + edited.len() + 16);
        model.extend_from_slice(&self.model[..self.graph.start]);
        put(&mut model, model_field::GRAPH, &edited);
        model.extend_from_slice(&self.model[self.graph.end..]);
        Some(model)
    }
}

mod model_field {
    pub(super) const GRAPH: u32 = 7;
    pub(super) const OPSET: u32 = 8;
}

/// Numbers of a graph's fields.
pub(crate) mod graph_field {
    pub(crate) const NODE: u32 = 1;
    pub(crate) const INITIALIZER: u32 = 5;
    pub(crate) const INPUT: u32 = 11;
    pub(crate) const OUTPUT: u32 = 12;
    pub(crate) const VALUE_INFO: u32 = 13;
}

/// Where a tensor and a value carry their names.
const TENSOR_NAME: u32 = 8;
const VALUE_NAME: u32 = 1;

/// Numbers of element types.
pub(crate) mod element {
    pub(crate) const FLOAT: i32 = 1;
    pub(crate) const UINT8: i32 = 2;
    pub(crate) const INT32: i32 = 6;
    pub(crate) const INT64: i32 = 7;
    pub(crate) const FLOAT16: i32 = 10;
}

/// A node with other inputs; all else as it stands.
pub(crate) fn with_inputs(node: &[u8], inputs: &[String]) -> Option<Vec<u8>> {
    const INPUT: u32 = 1;
    let mut out = Vec::with_capacity(node.len() + 64);
    for input in inputs {
        put(&mut out, INPUT, input.as_bytes());
    }
    for field in fields(node)? {
        if field.number != INPUT {
            out.extend_from_slice(&node[field.whole]);
        }
    }
    Some(out)
}

/// A node with another operator; all else as it stands.
pub(crate) fn with_operator(node: &[u8], op_type: &str, domain: &str) -> Option<Vec<u8>> {
    const OP_TYPE: u32 = 4;
    const DOMAIN: u32 = 7;
    let mut out = Vec::with_capacity(node.len() + 32);
    for field in fields(node)? {
        if field.number != OP_TYPE && field.number != DOMAIN {
            out.extend_from_slice(&node[field.whole]);
        }
    }
    put(&mut out, OP_TYPE, op_type.as_bytes());
    put(&mut out, DOMAIN, domain.as_bytes());
    Some(out)
}

/// A model that also imports the operators of `domain`; once, whoever asks for it.
pub(crate) fn with_opset(mut model: Vec<u8>, domain: &str, version: i64) -> Vec<u8> {
    let imports = |field: &Field| {
        field.number == model_field::OPSET
            && OperatorSetIdProto::decode(&model[field.payload.clone()])
                .is_ok_and(|opset| opset.domain == domain)
    };
    if fields(&model).is_some_and(|fields| fields.iter().any(imports)) {
        return model;
    }
    let opset = OperatorSetIdProto {
        domain: domain.to_owned(),
        version,
    };
    put(&mut model, model_field::OPSET, &opset.encode_to_vec());
    model
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

fn name_of(message: &[u8], number: u32) -> Option<&str> {
    let field = fields(message)?.into_iter().find(|field| field.number == number);
    match field {
        Some(field) => std::str::from_utf8(&message[field.payload]).ok(),
        None => Some(""),
    }
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

/// A node without what its attributes carry beyond single numbers.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct NodeProto {
    #[prost(string, repeated, tag = "1")]
    pub(crate) input: Vec<String>,
    #[prost(string, repeated, tag = "2")]
    pub(crate) output: Vec<String>,
    #[prost(string, tag = "3")]
    pub(crate) name: String,
    #[prost(string, tag = "4")]
    pub(crate) op_type: String,
    #[prost(message, repeated, tag = "5")]
    pub(crate) attribute: Vec<AttributeProto>,
    #[prost(string, tag = "7")]
    pub(crate) domain: String,
}

/// Which version of a domain's operators a model is written for.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct OperatorSetIdProto {
    #[prost(string, tag = "1")]
    pub(crate) domain: String,
    #[prost(int64, tag = "2")]
    pub(crate) version: i64,
}

/// A tensor without what it holds.
#[derive(Clone, PartialEq, prost::Message)]
struct TensorHead {
    #[prost(int32, tag = "2")]
    data_type: i32,
    #[prost(string, tag = "8")]
    name: String,
}

impl NodeProto {
    pub(crate) fn new(op_type: &str, inputs: &[&str], output: &str) -> Self {
        Self {
            input: inputs.iter().map(ToString::to_string).collect(),
            output: vec![output.to_owned()],
            name: format!("{output}/{op_type}"),
            op_type: op_type.to_owned(),
            attribute: Vec::new(),
            domain: String::new(),
        }
    }

    /// The outputs that have a name: an optional one that is not wanted has none.
    pub(crate) fn outputs(&self) -> impl Iterator<Item = &str> {
        self.output
            .iter()
            .map(String::as_str)
            .filter(|name| !name.is_empty())
    }
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct AttributeProto {
    #[prost(string, tag = "1")]
    pub(crate) name: String,
    #[prost(float, tag = "2")]
    pub(crate) f: f32,
    #[prost(int64, tag = "3")]
    pub(crate) i: i64,
    #[prost(int32, tag = "20")]
    pub(crate) kind: i32,
}

impl AttributeProto {
    /// A whole number.
    pub(crate) fn int(name: &str, i: i64) -> Self {
        const INT: i32 = 2;
        Self {
            name: name.to_owned(),
            f: 0.0,
            i,
            kind: INT,
        }
    }
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct TensorProto {
    #[prost(int64, repeated, tag = "1")]
    pub(crate) dims: Vec<i64>,
    #[prost(int32, tag = "2")]
    pub(crate) data_type: i32,
    #[prost(int64, repeated, tag = "7")]
    pub(crate) int64_data: Vec<i64>,
    #[prost(string, tag = "8")]
    pub(crate) name: String,
    #[prost(bytes = "bytes", tag = "9")]
    pub(crate) raw_data: prost::bytes::Bytes,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct ValueInfoProto {
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
    #[prost(int64, optional, tag = "1")]
    value: Option<i64>,
    #[prost(string, optional, tag = "2")]
    name: Option<String>,
}

impl ValueInfoProto {
    /// A tensor of these dimensions, each open under a name of its own.
    pub(crate) fn open(name: &str, element: i32, dims: &[&str]) -> Self {
        let dims = dims.iter().map(|dim| Dim {
            value: None,
            name: Some((*dim).to_owned()),
        });
        let tensor = TensorKind {
            element,
            shape: Some(Shape { dims: dims.collect() }),
        };
        Self {
            name: name.to_owned(),
            kind: Some(Kind { tensor: Some(tensor) }),
        }
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }
}

/// Graphs for the tests of single edits.
#[cfg(test)]
pub(crate) mod testing {
    use super::{NodeProto, OperatorSetIdProto, TensorProto, ValueInfoProto};
    use prost::Message;

    #[derive(Clone, PartialEq, prost::Message)]
    pub(crate) struct Graph {
        #[prost(message, repeated, tag = "1")]
        pub(crate) node: Vec<NodeProto>,
        #[prost(string, tag = "2")]
        pub(crate) name: String,
        #[prost(message, repeated, tag = "5")]
        pub(crate) initializer: Vec<TensorProto>,
        #[prost(message, repeated, tag = "11")]
        pub(crate) input: Vec<ValueInfoProto>,
        #[prost(message, repeated, tag = "12")]
        pub(crate) output: Vec<ValueInfoProto>,
        #[prost(message, repeated, tag = "13")]
        pub(crate) value_info: Vec<ValueInfoProto>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(crate) struct Model {
        #[prost(int64, tag = "1")]
        pub(crate) ir_version: i64,
        #[prost(message, optional, tag = "7")]
        pub(crate) graph: Option<Graph>,
        #[prost(string, tag = "2")]
        pub(crate) producer: String,
        #[prost(message, repeated, tag = "8")]
        pub(crate) opset: Vec<OperatorSetIdProto>,
    }

    pub(crate) fn graph_of(node: Vec<NodeProto>) -> Vec<u8> {
        let graph = Graph {
            node,
            name: "main".into(),
            ..Graph::default()
        };
        let model = Model {
            ir_version: 10,
            graph: Some(graph),
            producer: "test".into(),
            opset: Vec::new(),
        };
        model.encode_to_vec()
    }

    pub(crate) fn read(model: &[u8]) -> Graph {
        let model = Model::decode(model).unwrap();
        model.graph.unwrap()
    }

    /// Graphs that the exporter wrote, of 2026 and of 2024.
    pub(crate) fn exported() -> [(&'static str, Vec<u8>); 2] {
        [
            "models/demo/model.onnx",
            "tests/fixtures/forms/2024/phi3-random-cpu-int4.onnx",
        ]
        .map(|file| {
            let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
            (file, std::fs::read(root.join(file)).unwrap())
        })
    }
}
