//! Facts of a graph file that ONNX Runtime's API does not provide.

use std::collections::HashMap;
use std::path::Path;

use prost::Message;

use crate::error::OnnxError;
use crate::onnx_proto::{GraphProto, ModelProto, NodeProto, TensorProto};

/// The facts of a graph.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct GraphFacts {
    /// LongRoPE: sequences of more tokens are computed under the long factors.
    pub(crate) rope_boundary: Option<usize>,
    pub(crate) experts: ExpertsForm,
}

/// The form of a graph's experts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ExpertsForm {
    /// It has none.
    None,
    /// The graph weighs the experts' results itself: what every provider computes that has the operator.
    Weighed,
    /// The operator is to weigh them by the sparse mixer, or its experts have three matrices: what ONNX Runtime computes on CUDA.
    /// The processor's operator ignores both, and gives wrong answers without an error.
    Fused,
}

impl ExpertsForm {
    fn of(graph: &GraphProto) -> Self {
        // Input 8 has the third matrices.
        let is_fused = |node: &NodeProto| -> bool {
            node.attribute("use_sparse_mixer")
                .is_some_and(|mixer| mixer.i != 0)
                || node.input.get(8).is_some_and(|name| !name.is_empty())
        };
        let experts: Vec<&NodeProto> = graph.node.iter().filter(|node| node.op_type == "QMoE").collect();
        if experts.is_empty() {
            Self::None
        } else if experts.into_iter().any(is_fused) {
            Self::Fused
        } else {
            Self::Weighed
        }
    }
}

/// Reads the facts of the graph at `path`.
pub(crate) fn read(path: &Path) -> Result<GraphFacts, OnnxError> {
    let graph = decode(path)?;
    let rope_boundary = rope_boundary(&graph).map_err(|fault| OnnxError::Model {
        path: path.to_path_buf(),
        fault,
    })?;
    Ok(GraphFacts {
        rope_boundary,
        experts: ExpertsForm::of(&graph),
    })
}

/// The graph at `path`. Weights that it holds itself are not copied.
pub(crate) fn decode(path: &Path) -> Result<GraphProto, OnnxError> {
    let fault = |fault: String| OnnxError::Model {
        path: path.to_path_buf(),
        fault,
    };
    let map = std::fs::File::open(path)
        // SAFETY: the map is read only here, before the session opens the same file; a model file that
        // changes in that moment gives wrong bytes, which decoding reports.
        .and_then(|file| unsafe { memmap2::Mmap::map(&file) })
        .map_err(|error| fault(format!("can't be read: {error}")))?;
    // Over a map, the weights of a graph that holds them itself are not copied.
    let model = ModelProto::decode(prost::bytes::Bytes::from_owner(map))
        .map_err(|_| fault("is no ONNX graph, or a truncated one: copy or export it again".into()))?;
    model
        .graph
        .ok_or_else(|| fault("holds no graph: copy or export it again".into()))
}

/// Returns the LongRoPE boundary: the whole number that the mask's width (graphs with `If`) or the largest position
/// (graphs with `position_ids`) is compared with. `width > n` and `position >= n` both mean: more than n tokens.
fn rope_boundary(graph: &GraphProto) -> Result<Option<usize>, String> {
    let mut constants: HashMap<&str, i64> = HashMap::new();
    for initializer in &graph.initializer {
        if let Some(value) = initializer.int() {
            constants.insert(&initializer.name, value);
        }
    }
    for node in graph.node.iter().filter(|node| node.op_type == "Constant") {
        let value = node
            .attribute
            .iter()
            .find_map(|attribute| match attribute.name.as_str() {
                "value" => attribute.t.as_ref().and_then(TensorProto::int),
                "value_int" => Some(attribute.i),
                _ => None,
            });
        if let (Some(value), Some(output)) = (value, node.output.first()) {
            constants.insert(output, value);
        }
    }
    let mut found: Vec<i64> = Vec::new();
    for node in &graph.node {
        // `Less` and its kin compare the same two things the other way round.
        if ["Greater", "GreaterOrEqual", "Less", "LessOrEqual"].contains(&node.op_type.as_str()) {
            let compared = node.input.iter().find_map(|input| constants.get(input.as_str()));
            found.extend(compared.filter(|value| **value > 1));
        }
    }
    found.sort_unstable();
    found.dedup();
    match found.as_slice() {
        [] => Ok(None),
        [boundary] => usize::try_from(*boundary)
            .map(Some)
            .map_err(|error| error.to_string()),
        several => Err(format!(
            "compares lengths with several numbers ({several:?}), so its LongRoPE boundary is not known: this form of graph is not supported"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::onnx_proto::AttributeProto;

    fn constant(name: &str, value: i64) -> NodeProto {
        let t = TensorProto {
            data_type: 7,
            raw_data: value.to_le_bytes().to_vec().into(),
            ..TensorProto::default()
        };
        let attribute = AttributeProto {
            name: "value".into(),
            t: Some(t),
            ..AttributeProto::default()
        };
        NodeProto {
            output: vec![name.into()],
            op_type: "Constant".into(),
            attribute: vec![attribute],
            ..NodeProto::default()
        }
    }

    fn compare(op: &str, a: &str, b: &str) -> NodeProto {
        NodeProto {
            input: vec![a.into(), b.into()],
            op_type: op.into(),
            ..NodeProto::default()
        }
    }

    fn boundary(node: Vec<NodeProto>, initializer: Vec<TensorProto>) -> Result<Option<usize>, String> {
        rope_boundary(&GraphProto {
            node,
            initializer,
            ..GraphProto::default()
        })
    }

    #[test]
    fn finds_the_boundary_in_every_form() {
        let greater = vec![constant("c", 4096), compare("Greater", "width", "c")];
        assert_eq!(boundary(greater, vec![]), Ok(Some(4096)));
        let less = vec![constant("c", 64), compare("LessOrEqual", "c", "position")];
        assert_eq!(boundary(less, vec![]), Ok(Some(64)));
        let initializer = TensorProto {
            name: "c".into(),
            data_type: 7,
            int64_data: vec![64],
            dims: vec![1],
            ..TensorProto::default()
        };
        assert_eq!(
            boundary(vec![compare("GreaterOrEqual", "p", "c")], vec![initializer]),
            Ok(Some(64))
        );
        assert_eq!(boundary(vec![constant("c", 64)], vec![]), Ok(None));
    }

    #[test]
    fn the_form_of_experts_is_told() {
        fn form(change: impl Fn(&mut NodeProto)) -> ExpertsForm {
            let mut node = NodeProto::new("QMoE", &["x", "scores", "w1", "s1", "", "w2", "s2"], "y");
            change(&mut node);
            ExpertsForm::of(&GraphProto {
                node: vec![compare("Add", "a", "b"), node],
                ..GraphProto::default()
            })
        }
        assert_eq!(form(|_| ()), ExpertsForm::Weighed);
        assert_eq!(form(|node| node.op_type = "MatMul".into()), ExpertsForm::None);
        assert_eq!(
            form(|node| node.input.extend(["", "w3"].map(Into::into))),
            ExpertsForm::Fused
        );
        let mixer = |value| AttributeProto::int("use_sparse_mixer", value);
        assert_eq!(form(|node| node.attribute.push(mixer(0))), ExpertsForm::Weighed);
        assert_eq!(form(|node| node.attribute.push(mixer(1))), ExpertsForm::Fused);
    }

    #[test]
    fn several_numbers_are_an_error() {
        let nodes = vec![
            constant("a", 64),
            constant("b", 65),
            compare("Greater", "x", "a"),
            compare("Greater", "x", "b"),
        ];
        assert!(boundary(nodes, vec![]).is_err());
    }

    #[test]
    fn garbage_is_an_error_that_names_the_file() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), [0xff; 100]).unwrap();
        let error = read(file.path()).unwrap_err().to_string();
        assert!(
            error.contains(&file.path().display().to_string()) && error.contains("no ONNX graph"),
            "{error}"
        );
    }
}
