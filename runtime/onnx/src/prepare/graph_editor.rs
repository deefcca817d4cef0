//! The graph editor: an ONNX model as protobuf bytes, read as far as an edit needs and written with what it changes.
//!
//! Fields that an edit does not name are copied as they are, known or not.

use std::collections::{HashMap, HashSet};
use std::ops::Range;

use prost::Message;
use prost::bytes::Bytes;

use crate::onnx_proto::{
    AttributeProto, NodeProto, OperatorSetIdProto, TENSOR_NAME_FIELD, TensorProto, VALUE_INFO_NAME_FIELD,
    ValueInfoProto, graph_field, model_field, node_field,
};
use crate::prepare::protobuf::{Field, fields, name_of, put};

/// A model taken apart down to the graph's fields.
pub(crate) struct GraphEditor {
    model: Bytes,
    /// The graph's field within `model`.
    graph: Range<usize>,
    /// What the graph's field carries.
    body: Bytes,
    fields: Vec<Field>,
    /// The graph's nodes in their order.
    pub(crate) nodes: Vec<NodeProto>,
}

/// An initializer's element type and shape.
pub(crate) struct InitializerForm {
    pub(crate) data_type: i32,
    pub(crate) dims: Vec<i64>,
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

/// What an edit makes of a field.
pub(crate) enum FieldEdit {
    /// The field as it is.
    Keep,
    /// Nothing.
    Drop,
    /// The field with this content.
    Put(Vec<u8>),
}

impl GraphEditor {
    /// Reads a model. `None`: the bytes are none.
    pub(crate) fn read(model: &Bytes) -> Option<Self> {
        let graph = fields(model)?
            .into_iter()
            .find(|field| field.number == model_field::GRAPH)?;
        let body = model.slice(graph.payload);
        let fields = fields(&body)?;
        let nodes = fields
            .iter()
            .filter(|field| field.number == graph_field::NODE)
            .map(|field| NodeProto::decode(body.slice(field.payload.clone())).ok())
            .collect::<Option<_>>()?;
        Some(Self {
            model: model.clone(),
            graph: graph.whole,
            body,
            fields,
            nodes,
        })
    }

    /// A node's bytes.
    pub(crate) fn node(&self, index: usize) -> Option<&[u8]> {
        let mut nodes = self.payloads(graph_field::NODE);
        nodes.nth(index).map(|payload| &self.body[payload])
    }

    /// The element types of the graph's initializers, by name.
    pub(crate) fn initializers(&self) -> Option<HashMap<String, i32>> {
        self.payloads(graph_field::INITIALIZER)
            .map(|payload| {
                let tensor = TensorProto::decode(self.body.slice(payload)).ok()?;
                Some((tensor.name, tensor.data_type))
            })
            .collect()
    }

    /// The element types and shapes of the graph's initializers, by name.
    pub(crate) fn initializer_forms(&self) -> Option<HashMap<String, InitializerForm>> {
        self.payloads(graph_field::INITIALIZER)
            .map(|payload| {
                let tensor = TensorProto::decode(self.body.slice(payload)).ok()?;
                let form = InitializerForm {
                    data_type: tensor.data_type,
                    dims: tensor.dims,
                };
                Some((tensor.name, form))
            })
            .collect()
    }

    /// The element types of the graph's inputs, by name.
    pub(crate) fn inputs(&self) -> Option<HashMap<String, i32>> {
        self.payloads(graph_field::INPUT)
            .map(|payload| {
                let value = ValueInfoProto::decode(self.body.slice(payload)).ok()?;
                let data_type = value.data_type();
                Some((value.name, data_type))
            })
            .collect()
    }

    /// The names of the graph's inputs, outputs or initializers, by their field's number.
    pub(crate) fn names(&self, number: u32) -> Option<HashSet<&str>> {
        let name = if number == graph_field::INITIALIZER {
            TENSOR_NAME_FIELD
        } else {
            VALUE_INFO_NAME_FIELD
        };
        self.payloads(number)
            .map(|payload| name_of(self.body.get(payload)?, name))
            .collect()
    }

    /// The contents of the fields of this number, as ranges of the graph.
    fn payloads(&self, number: u32) -> impl Iterator<Item = Range<usize>> {
        let fields = self.fields.iter().filter(move |field| field.number == number);
        fields.map(|field| field.payload.clone())
    }

    /// Returns the model with each field of its graph as `edit` makes it, and `extra` fields behind them.
    pub(crate) fn write(
        &self,
        edit: impl FnMut(GraphField<'_>) -> Option<FieldEdit>,
        extra: &[(u32, Vec<u8>)],
    ) -> Option<Bytes> {
        self.write_after(&[], edit, extra)
    }

    /// The same, with fields `before` those of the graph: nodes that its own depend on.
    pub(crate) fn write_after(
        &self,
        before: &[(u32, Vec<u8>)],
        mut edit: impl FnMut(GraphField<'_>) -> Option<FieldEdit>,
        extra: &[(u32, Vec<u8>)],
    ) -> Option<Bytes> {
        let mut edited = Vec::with_capacity(self.body.len() + 1024);
        for (number, content) in before {
            put(&mut edited, *number, content);
        }
        let mut next_node = 0;
        for field in &self.fields {
            let payload = &self.body[field.payload.clone()];
            let seen = match field.number {
                graph_field::NODE => {
                    next_node += 1;
                    GraphField::Node(next_node - 1)
                }
                graph_field::INITIALIZER => {
                    GraphField::Named(field.number, name_of(payload, TENSOR_NAME_FIELD)?)
                }
                graph_field::INPUT | graph_field::OUTPUT | graph_field::VALUE_INFO => {
                    GraphField::Named(field.number, name_of(payload, VALUE_INFO_NAME_FIELD)?)
                }
                _ => GraphField::Other,
            };
            match edit(seen)? {
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
        Some(model.into())
    }
}

/// Returns a node with other inputs, otherwise unchanged.
pub(crate) fn with_inputs(node: &[u8], inputs: &[String]) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(node.len() + 64);
    for input in inputs {
        put(&mut out, node_field::INPUT, input.as_bytes());
    }
    for field in fields(node)? {
        if field.number != node_field::INPUT {
            out.extend_from_slice(&node[field.whole]);
        }
    }
    Some(out)
}

/// Returns a node with other outputs, otherwise unchanged.
pub(crate) fn with_outputs(node: &[u8], outputs: &[String]) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(node.len());
    for output in outputs {
        put(&mut out, node_field::OUTPUT, output.as_bytes());
    }
    for field in fields(node)? {
        if field.number != node_field::OUTPUT {
            out.extend_from_slice(&node[field.whole]);
        }
    }
    Some(out)
}

/// Returns a node with one more attribute.
pub(crate) fn with_attribute(mut node: Vec<u8>, attribute: &AttributeProto) -> Vec<u8> {
    put(&mut node, node_field::ATTRIBUTE, &attribute.encode_to_vec());
    node
}

/// Returns a node with another operator, otherwise unchanged.
pub(crate) fn with_operator(node: &[u8], op_type: &str, domain: &str) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(node.len() + 32);
    for field in fields(node)? {
        if ![node_field::OP_TYPE, node_field::DOMAIN].contains(&field.number) {
            out.extend_from_slice(&node[field.whole]);
        }
    }
    put(&mut out, node_field::OP_TYPE, op_type.as_bytes());
    put(&mut out, node_field::DOMAIN, domain.as_bytes());
    Some(out)
}

/// Returns a model that imports the operators of `domain`, once.
pub(crate) fn with_opset(model: Bytes, domain: &str, version: i64) -> Bytes {
    let imports = |field: &Field| {
        field.number == model_field::OPSET_IMPORT
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
    // The memory of a model with one owner is reused.
    let mut model = Vec::from(model);
    put(&mut model, model_field::OPSET_IMPORT, &opset.encode_to_vec());
    model.into()
}
