//! The merge of an embedding graph with the decoder graph that takes its embeddings: one graph that takes token ids and
//! features of images.
//!
//! Both graphs name their values as they like. Those of the embedding graph get a prefix; its inputs keep their names.

use prost::Message;
use prost::bytes::Bytes;

use crate::onnx_proto::{
    OperatorSetIdProto, TENSOR_NAME_FIELD, VALUE_INFO_NAME_FIELD, attribute_field, graph_field, model_field,
    node_field,
};
use crate::prepare::graph_editor::{FieldEdit, GraphEditor, GraphField, with_opset};
use crate::prepare::protobuf::{fields, name_of, put};

/// The prefix of the embedding graph's values.
const PREFIX: &str = "phi_edge.embedding/";
const NODE_NAME: u32 = 3;
const FUNCTIONS: u32 = 25;
const NO_GRAPH: &str = "is no ONNX graph, or a truncated one: copy or export it again";

/// The names that join the two graphs.
pub(crate) struct MergeNames<'a> {
    /// The inputs of the embedding graph.
    pub(crate) inputs: [&'a str; 2],
    /// Its output.
    pub(crate) embeddings: &'a str,
    /// The decoder graph's input that takes it.
    pub(crate) inputs_embeds: &'a str,
}

/// Returns `decoder` with the nodes of `embedding` before its own. The error says what does not fit.
pub(crate) fn merge_embedding(
    decoder: &Bytes,
    embedding: &Bytes,
    names: &MergeNames<'_>,
) -> Result<Bytes, String> {
    let editor = GraphEditor::read(decoder).ok_or(NO_GRAPH)?;
    let has = |field: u32, wanted: &str| editor.names(field).is_some_and(|names| names.contains(wanted));
    if !has(graph_field::INPUT, names.inputs_embeds) {
        return Err(format!(
            "has no input \"{}\", which genai_config.json names: the two files are not of the same export",
            names.inputs_embeds
        ));
    }
    let taken = |name: &&str| {
        has(graph_field::INPUT, name)
            || editor
                .nodes
                .iter()
                .any(|node| node.outputs().any(|output| output == *name))
    };
    if let Some(name) = names.inputs.iter().find(|name| taken(name)) {
        return Err(format!(
            "has a value \"{name}\" of its own, the name of an input of the embedding graph: this form of export is not supported"
        ));
    }
    let (before, opsets) = embedding_fields(embedding, names)?;
    let merged = editor
        .write_after(
            &before,
            |part| {
                Some(match part {
                    GraphField::Named(graph_field::INPUT, name) if name == names.inputs_embeds => {
                        FieldEdit::Drop
                    }
                    _ => FieldEdit::Keep,
                })
            },
            &[],
        )
        .ok_or(NO_GRAPH)?;
    Ok(opsets.into_iter().fold(merged, |merged, opset| {
        with_opset(merged, &opset.domain, opset.version)
    }))
}

/// Fields of a graph, by number.
type GraphFields = Vec<(u32, Vec<u8>)>;

/// The embedding graph's nodes, initializers and inputs under their names in the merged graph, and its operator sets.
fn embedding_fields(
    embedding: &Bytes,
    names: &MergeNames<'_>,
) -> Result<(GraphFields, Vec<OperatorSetIdProto>), String> {
    let fault = |fault: &str| format!("the embedding graph {fault}");
    let no_graph = || fault(NO_GRAPH);
    let model = fields(embedding).ok_or_else(no_graph)?;
    if model.iter().any(|field| field.number == FUNCTIONS) {
        return Err(fault(
            "has functions of its own: this form of export is not supported",
        ));
    }
    let graph = model.iter().find(|field| field.number == model_field::GRAPH);
    let body = graph
        .and_then(|graph| embedding.get(graph.payload.clone()))
        .ok_or_else(no_graph)?;
    let parts = fields(body).ok_or_else(no_graph)?;
    let rename = |name: &str| {
        if name.is_empty() || names.inputs.contains(&name) {
            name.to_owned()
        } else if name == names.embeddings {
            names.inputs_embeds.to_owned()
        } else {
            format!("{PREFIX}{name}")
        }
    };
    let mut before = Vec::new();
    let mut inputs = Vec::new();
    let mut outputs = Vec::new();
    for part in parts {
        let content = body.get(part.payload).ok_or_else(no_graph)?;
        match part.number {
            graph_field::NODE | graph_field::INITIALIZER => {
                let renamed = renamed(content, part.number, &rename);
                before.push((part.number, renamed.ok_or_else(no_graph)?));
            }
            graph_field::INPUT => {
                inputs.push(name_of(content, VALUE_INFO_NAME_FIELD).ok_or_else(no_graph)?);
                before.push((part.number, content.to_vec()));
            }
            graph_field::OUTPUT => {
                outputs.push(name_of(content, VALUE_INFO_NAME_FIELD).ok_or_else(no_graph)?);
            }
            graph_field::SPARSE_INITIALIZER => {
                return Err(fault("has sparse weights: this form of export is not supported"));
            }
            _ => {}
        }
    }
    inputs.sort_unstable();
    let mut wanted = names.inputs;
    wanted.sort_unstable();
    if inputs != wanted || !outputs.contains(&names.embeddings) {
        return Err(fault(&format!(
            "has inputs {inputs:?} and outputs {outputs:?}, but genai_config.json names {wanted:?} and {:?}: the two files are not of the same export",
            names.embeddings
        )));
    }
    let opsets = model
        .iter()
        .filter(|field| field.number == model_field::OPSET_IMPORT);
    let opsets =
        opsets.filter_map(|field| OperatorSetIdProto::decode(embedding.get(field.payload.clone())?).ok());
    Ok((before, opsets.collect()))
}

/// A part of a graph with its values renamed, those of inner graphs as well. `number` is its field's.
///
/// How deep graphs are nested is bounded by the decoder that reads the file first.
fn renamed(part: &[u8], number: u32, rename: &dyn Fn(&str) -> String) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(part.len() + 64);
    for field in fields(part)? {
        let content = part.get(field.payload.clone())?;
        let named = match (number, field.number) {
            (graph_field::NODE, node_field::INPUT | node_field::OUTPUT | NODE_NAME)
            | (graph_field::INITIALIZER, TENSOR_NAME_FIELD)
            | (graph_field::INPUT | graph_field::OUTPUT | graph_field::VALUE_INFO, VALUE_INFO_NAME_FIELD) => {
                Some(rename(std::str::from_utf8(content).ok()?).into_bytes())
            }
            (graph_field::NODE, node_field::ATTRIBUTE) => Some(renamed_attribute(content, rename)?),
            _ => None,
        };
        match named {
            Some(named) => put(&mut out, field.number, &named),
            None => out.extend_from_slice(part.get(field.whole)?),
        }
    }
    Some(out)
}

fn renamed_attribute(attribute: &[u8], rename: &dyn Fn(&str) -> String) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(attribute.len());
    for field in fields(attribute)? {
        if ![attribute_field::GRAPH, attribute_field::GRAPHS].contains(&field.number) {
            out.extend_from_slice(attribute.get(field.whole)?);
            continue;
        }
        let graph = attribute.get(field.payload)?;
        let mut inner = Vec::with_capacity(graph.len());
        for part in fields(graph)? {
            let content = graph.get(part.payload.clone())?;
            match part.number {
                graph_field::NODE
                | graph_field::INITIALIZER
                | graph_field::INPUT
                | graph_field::OUTPUT
                | graph_field::VALUE_INFO => {
                    put(&mut inner, part.number, &renamed(content, part.number, rename)?);
                }
                graph_field::SPARSE_INITIALIZER => return None,
                _ => inner.extend_from_slice(graph.get(part.whole)?),
            }
        }
        put(&mut out, field.number, &inner);
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::onnx_proto::{
        AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, data_type,
    };
    use crate::prepare::test_graphs::read;

    const NAMES: MergeNames<'static> = MergeNames {
        inputs: ["input_ids", "image_features"],
        embeddings: "out",
        inputs_embeds: "inputs_embeds",
    };

    fn value(name: &str) -> ValueInfoProto {
        ValueInfoProto::tensor(name, data_type::FLOAT, &["rows"])
    }

    fn model(node: Vec<NodeProto>, input: &[&str], output: &str) -> ModelProto {
        ModelProto {
            ir_version: 10,
            graph: Some(GraphProto {
                node,
                name: "main".into(),
                initializer: vec![TensorProto {
                    name: "table".into(),
                    ..TensorProto::default()
                }],
                input: input.iter().map(|name| value(name)).collect(),
                output: vec![value(output)],
                value_info: vec![value("x")],
            }),
            ..ModelProto::default()
        }
    }

    fn embedding() -> ModelProto {
        let branch = GraphProto {
            node: vec![NodeProto::new("Add", &["x", "image_features"], "chosen")],
            output: vec![value("chosen")],
            ..GraphProto::default()
        };
        let mut choice = NodeProto::new("If", &["any"], "out");
        choice.attribute.push(AttributeProto {
            name: "then_branch".into(),
            g: Some(branch),
            ..AttributeProto::default()
        });
        let nodes = vec![NodeProto::new("Gather", &["table", "input_ids", ""], "x"), choice];
        let mut model = model(nodes, &["input_ids", "image_features"], "out");
        model.opset_import = [("", 18), ("com.microsoft", 1)]
            .map(|(domain, version)| OperatorSetIdProto {
                domain: domain.into(),
                version,
            })
            .into();
        model
    }

    fn bytes(model: &ModelProto) -> Bytes {
        model.encode_to_vec().into()
    }

    fn decoder() -> ModelProto {
        let mut model = model(
            vec![NodeProto::new("MatMul", &["inputs_embeds", "x"], "logits")],
            &["inputs_embeds", "mask"],
            "logits",
        );
        model.opset_import = vec![OperatorSetIdProto {
            domain: String::new(),
            version: 22,
        }];
        model
    }

    #[test]
    fn values_of_both_graphs_are_kept_apart() {
        let merged = merge_embedding(&bytes(&decoder()), &bytes(&embedding()), &NAMES).unwrap();
        let opsets: Vec<_> = ModelProto::decode(merged.clone()).unwrap().opset_import;
        let opsets: Vec<_> = opsets
            .iter()
            .map(|opset| (opset.domain.as_str(), opset.version))
            .collect();
        assert_eq!(opsets, [("", 22), ("com.microsoft", 1)]);
        let graph = read(&merged);
        let own = |name: &str| format!("{PREFIX}{name}");
        assert_eq!(
            graph.node[0].input,
            [own("table"), "input_ids".into(), String::new()]
        );
        assert_eq!(graph.node[0].output, [own("x")]);
        assert_eq!(graph.node[1].output, ["inputs_embeds"]);
        let branch = graph.node[1].attribute[0].g.as_ref().unwrap();
        assert_eq!(branch.node[0].input, [own("x"), "image_features".into()]);
        assert_eq!(branch.output[0].name, own("chosen"));
        assert_eq!(graph.node[2].input, ["inputs_embeds", "x"]);
        let inputs: Vec<&str> = graph.input.iter().map(|input| input.name.as_str()).collect();
        assert_eq!(inputs, ["input_ids", "image_features", "mask"]);
        let initializers: Vec<&str> = graph
            .initializer
            .iter()
            .map(|tensor| tensor.name.as_str())
            .collect();
        assert_eq!(initializers, [own("table").as_str(), "table"]);
        assert_eq!(graph.output.len(), 1);
    }

    #[test]
    fn graphs_that_do_not_fit_are_told() {
        let check = |decoder: &ModelProto, embedding: &ModelProto, expected: &str| {
            let fault = merge_embedding(&bytes(decoder), &bytes(embedding), &NAMES).unwrap_err();
            assert!(fault.contains(expected), "{fault}");
        };
        let graph =
            |model: &mut ModelProto, change: fn(&mut GraphProto)| change(model.graph.as_mut().unwrap());
        let mut other = embedding();
        graph(&mut other, |graph| graph.input.truncate(1));
        check(&decoder(), &other, "genai_config.json names");
        let mut other = decoder();
        graph(&mut other, |graph| graph.input.remove(0).name.clear());
        check(&other, &embedding(), "has no input \"inputs_embeds\"");
        let mut other = decoder();
        graph(&mut other, |graph| graph.input.push(value("input_ids")));
        check(&other, &embedding(), "a value \"input_ids\" of its own");
        let whole = bytes(&embedding());
        for length in 0..whole.len() {
            // None of them makes it panic; a file that ends between two fields may be a model.
            let _ = merge_embedding(&bytes(&decoder()), &whole.slice(..length), &NAMES);
        }
    }
}
