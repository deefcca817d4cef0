//! The messages of onnx.proto (ONNX IR specification), as far as they are read or written here.
//!
//! Fields that are not named are skipped. Decoded from [`Bytes`], a tensor's data are a view of the same memory: weights and
//! rope tables are not copied.

use prost::bytes::Bytes;

/// Field numbers of `ModelProto`.
pub(crate) mod model_field {
    pub(crate) const GRAPH: u32 = 7;
    pub(crate) const OPSET_IMPORT: u32 = 8;
}

/// Field numbers of `GraphProto`.
pub(crate) mod graph_field {
    pub(crate) const NODE: u32 = 1;
    pub(crate) const INITIALIZER: u32 = 5;
    pub(crate) const INPUT: u32 = 11;
    pub(crate) const OUTPUT: u32 = 12;
    pub(crate) const VALUE_INFO: u32 = 13;
    pub(crate) const SPARSE_INITIALIZER: u32 = 15;
}

/// Field numbers of `NodeProto`.
pub(crate) mod node_field {
    pub(crate) const INPUT: u32 = 1;
    pub(crate) const OUTPUT: u32 = 2;
    pub(crate) const OP_TYPE: u32 = 4;
    pub(crate) const ATTRIBUTE: u32 = 5;
    pub(crate) const DOMAIN: u32 = 7;
}

/// Field numbers of `AttributeProto`.
pub(crate) mod attribute_field {
    pub(crate) const TENSOR: u32 = 5;
    pub(crate) const GRAPH: u32 = 6;
    pub(crate) const TENSORS: u32 = 10;
    pub(crate) const GRAPHS: u32 = 11;
}

/// Field numbers of `TensorProto`.
pub(crate) mod tensor_field {
    pub(crate) const EXTERNAL_DATA: u32 = 13;
}

/// Field numbers of `StringStringEntryProto`.
pub(crate) mod entry_field {
    pub(crate) const KEY: u32 = 1;
    pub(crate) const VALUE: u32 = 2;
}

/// The field number of a tensor's name.
pub(crate) const TENSOR_NAME_FIELD: u32 = 8;
/// The field number of a value's name.
pub(crate) const VALUE_INFO_NAME_FIELD: u32 = 1;

/// Element types (`TensorProto.DataType`).
pub(crate) mod data_type {
    pub(crate) const FLOAT: i32 = 1;
    pub(crate) const UINT8: i32 = 2;
    pub(crate) const INT32: i32 = 6;
    pub(crate) const INT64: i32 = 7;
    pub(crate) const FLOAT16: i32 = 10;
}

/// A model: a graph, and the operators that it is written for.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct ModelProto {
    #[prost(int64, tag = "1")]
    pub(crate) ir_version: i64,
    #[prost(string, tag = "2")]
    pub(crate) producer_name: String,
    #[prost(message, optional, tag = "7")]
    pub(crate) graph: Option<GraphProto>,
    #[prost(message, repeated, tag = "8")]
    pub(crate) opset_import: Vec<OperatorSetIdProto>,
}

/// A version of a domain's operators.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct OperatorSetIdProto {
    #[prost(string, tag = "1")]
    pub(crate) domain: String,
    #[prost(int64, tag = "2")]
    pub(crate) version: i64,
}

/// A graph of a model, or a branch of an `If`.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct GraphProto {
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

/// A node: one operator applied to named values.
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

impl NodeProto {
    /// A node of ONNX's own domain with one output, from which its name is made.
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

    /// The attribute of this name.
    pub(crate) fn attribute(&self, name: &str) -> Option<&AttributeProto> {
        self.attribute.iter().find(|attribute| attribute.name == name)
    }
}

/// A node's attribute: a number, a tensor or a graph.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct AttributeProto {
    #[prost(string, tag = "1")]
    pub(crate) name: String,
    #[prost(float, tag = "2")]
    pub(crate) f: f32,
    #[prost(int64, tag = "3")]
    pub(crate) i: i64,
    #[prost(bytes = "bytes", tag = "4")]
    pub(crate) s: Bytes,
    #[prost(message, optional, tag = "5")]
    pub(crate) t: Option<TensorProto>,
    #[prost(message, optional, tag = "6")]
    pub(crate) g: Option<GraphProto>,
    /// `AttributeProto.AttributeType`.
    #[prost(int32, tag = "20")]
    pub(crate) r#type: i32,
}

impl AttributeProto {
    /// `AttributeType.FLOAT`.
    pub(crate) const FLOAT: i32 = 1;
    /// `AttributeType.INT`.
    pub(crate) const INT: i32 = 2;

    /// An attribute that is a whole number.
    pub(crate) fn int(name: &str, i: i64) -> Self {
        Self {
            name: name.to_owned(),
            i,
            r#type: Self::INT,
            ..Self::default()
        }
    }
}

/// A tensor. Of its data, floats outside of `raw_data` are skipped.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct TensorProto {
    #[prost(int64, repeated, tag = "1")]
    pub(crate) dims: Vec<i64>,
    /// One of [`data_type`].
    #[prost(int32, tag = "2")]
    pub(crate) data_type: i32,
    #[prost(int32, repeated, tag = "5")]
    pub(crate) int32_data: Vec<i32>,
    #[prost(int64, repeated, tag = "7")]
    pub(crate) int64_data: Vec<i64>,
    #[prost(string, tag = "8")]
    pub(crate) name: String,
    #[prost(bytes = "bytes", tag = "9")]
    pub(crate) raw_data: Bytes,
}

impl TensorProto {
    /// The value of a whole number (of no or of one dimension).
    pub(crate) fn int(&self) -> Option<i64> {
        if self.dims.iter().product::<i64>() != 1 {
            return None;
        }
        match self.data_type {
            data_type::INT64 => self
                .int64_data
                .first()
                .copied()
                .or_else(|| self.raw_data.as_ref().try_into().ok().map(i64::from_le_bytes)),
            data_type::INT32 => self.int32_data.first().copied().map(i64::from).or_else(|| {
                self.raw_data
                    .as_ref()
                    .try_into()
                    .ok()
                    .map(|bytes| i64::from(i32::from_le_bytes(bytes)))
            }),
            _ => None,
        }
    }
}

/// A value's name and type.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct ValueInfoProto {
    #[prost(string, tag = "1")]
    pub(crate) name: String,
    #[prost(message, optional, tag = "2")]
    pub(crate) r#type: Option<TypeProto>,
}

impl ValueInfoProto {
    /// A tensor of symbolic dimensions.
    pub(crate) fn tensor(name: &str, data_type: i32, dims: &[&str]) -> Self {
        let dim = dims.iter().map(|dim| Dimension {
            dim_value: None,
            dim_param: Some((*dim).to_owned()),
        });
        let tensor_type = TensorTypeProto {
            elem_type: data_type,
            shape: Some(TensorShapeProto { dim: dim.collect() }),
        };
        Self {
            name: name.to_owned(),
            r#type: Some(TypeProto {
                tensor_type: Some(tensor_type),
            }),
        }
    }

    /// A tensor of unknown dimensions.
    pub(crate) fn tensor_of_any_shape(name: &str, data_type: i32) -> Self {
        let tensor_type = TensorTypeProto {
            elem_type: data_type,
            shape: None,
        };
        Self {
            name: name.to_owned(),
            r#type: Some(TypeProto {
                tensor_type: Some(tensor_type),
            }),
        }
    }

    /// The element type of a tensor; 0 for other values.
    pub(crate) fn data_type(&self) -> i32 {
        let tensor_type = self.r#type.as_ref().and_then(|of| of.tensor_type.as_ref());
        tensor_type.map_or(0, |tensor_type| tensor_type.elem_type)
    }
}

/// A value's type: a tensor's, or one that is skipped.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct TypeProto {
    #[prost(message, optional, tag = "1")]
    tensor_type: Option<TensorTypeProto>,
}

/// A tensor's type (`TypeProto.Tensor`).
#[derive(Clone, PartialEq, prost::Message)]
struct TensorTypeProto {
    #[prost(int32, tag = "1")]
    elem_type: i32,
    #[prost(message, optional, tag = "2")]
    shape: Option<TensorShapeProto>,
}

/// A tensor's dimensions.
#[derive(Clone, PartialEq, prost::Message)]
struct TensorShapeProto {
    #[prost(message, repeated, tag = "1")]
    dim: Vec<Dimension>,
}

/// A dimension: a number or a symbol (`TensorShapeProto.Dimension`).
#[derive(Clone, PartialEq, prost::Message)]
struct Dimension {
    #[prost(int64, optional, tag = "1")]
    dim_value: Option<i64>,
    #[prost(string, optional, tag = "2")]
    dim_param: Option<String>,
}
