//! The edit that computes logits of chosen tokens only.

use prost::Message;
use prost::bytes::Bytes;

use crate::onnx_proto::{AttributeProto, NodeProto, TensorProto, ValueInfoProto, data_type, graph_field};
use crate::prepare::graph_editor::{FieldEdit, GraphEditor, GraphField, with_inputs};
use crate::prepare::tail::Tail;

/// The input with the tokens whose logits are wanted: indices into the run's tokens, rows one after the other.
pub(crate) const LOGITS_ROWS: &str = "phi_edge.logits_rows";

/// Computes everything after the last attention only for the tokens whose logits are wanted: `logits` becomes `[1,
/// wanted, vocab]`.
///
/// Of a prefill chunk at most one is wanted, and the last matrix is the largest of the graph; most of the last layer
/// is saved as well. Keys and values are computed for all, before. `None`: the graph is of another form.
pub(crate) fn choose_logits(model: &Bytes, logits: &str) -> Option<Bytes> {
    let editor = GraphEditor::read(model)?;
    let tail = Tail::of(&editor, logits)
        .filter(|tail| tail.is_by_token(&editor.nodes))
        .or_else(|| Tail::projection(&editor.nodes, logits))?;
    let chosen = |name: &String| match tail.sources.iter().position(|source| source == name) {
        Some(at) => format!("{CHOSEN_HIDDEN}.{at}"),
        None => name.clone(),
    };
    // [rows, width, hidden] as [1, rows * width, hidden]: 0 keeps a dimension, -1 takes the rest.
    let shape = TensorProto {
        dims: vec![3],
        data_type: data_type::INT64,
        int64_data: vec![1, -1, 0],
        name: FLAT_SHAPE.into(),
        ..TensorProto::default()
    };
    let mut extra = vec![(graph_field::INITIALIZER, shape.encode_to_vec())];
    for (at, source) in tail.sources.iter().enumerate() {
        let (flat, chosen) = (format!("{FLAT_HIDDEN}.{at}"), format!("{CHOSEN_HIDDEN}.{at}"));
        let reshape = NodeProto::new("Reshape", &[source, FLAT_SHAPE], &flat);
        extra.push((graph_field::NODE, reshape.encode_to_vec()));
        let mut gather = NodeProto::new("Gather", &[&flat, LOGITS_ROWS], &chosen);
        gather.attribute.push(AttributeProto::int("axis", 1));
        extra.push((graph_field::NODE, gather.encode_to_vec()));
    }
    let rows = ValueInfoProto::tensor(LOGITS_ROWS, data_type::INT64, &["wanted_logits"]);
    extra.push((graph_field::INPUT, rows.encode_to_vec()));
    editor.write(
        |part| match part {
            GraphField::Node(index) if tail.nodes.contains(&index) => {
                let inputs: Vec<String> = editor.nodes[index].input.iter().map(chosen).collect();
                Some(FieldEdit::Put(with_inputs(editor.node(index)?, &inputs)?))
            }
            _ => Some(FieldEdit::Keep),
        },
        &extra,
    )
}

const FLAT_SHAPE: &str = "phi_edge.flat_shape";
const FLAT_HIDDEN: &str = "phi_edge.flat_hidden";
/// The names of the tail's inputs, of the wanted tokens alone, begin with this.
pub(super) const CHOSEN_HIDDEN: &str = "phi_edge.chosen_hidden";

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::onnx_proto::ModelProto;
    use crate::prepare::test_graphs::{exported, graph_of, graph_with_outputs};

    fn model(last: &str) -> Bytes {
        graph_of(vec![
            NodeProto::new("Gather", &["table", "ids"], "hidden"),
            NodeProto::new(last, &["hidden", "weight"], "logits"),
        ])
    }

    #[test]
    fn without_an_attention_the_projection_alone_gets_the_chosen_tokens() {
        let edited = choose_logits(&model("MatMulNBits"), "logits").unwrap();
        let edited = ModelProto::decode(edited).unwrap();
        assert_eq!((edited.ir_version, edited.producer_name.as_str()), (10, "test"));
        let graph = edited.graph.unwrap();
        assert_eq!(graph.node[1].input, ["phi_edge.chosen_hidden.0", "weight"]);
        assert_eq!(graph.node[2].input, ["hidden", FLAT_SHAPE]);
        assert_eq!(graph.node[3].input, ["phi_edge.flat_hidden.0", LOGITS_ROWS]);
        assert_eq!(graph.input[0].name, LOGITS_ROWS);
    }

    fn layer(between: &str) -> Bytes {
        let mut attention = NodeProto::new("GroupQueryAttention", &["qkv", "past"], "attended");
        attention.output.extend(["keys", "values"].map(ToOwned::to_owned));
        let outputs = ["logits", "keys", "values"];
        graph_with_outputs(
            &outputs,
            vec![
                NodeProto::new("Gather", &["table", "ids"], "stream"),
                NodeProto::new("MatMul", &["stream", "w1"], "qkv"),
                attention,
                NodeProto::new("MatMul", &["attended", "w2"], "projected"),
                NodeProto::new(
                    "SkipSimplifiedLayerNormalization",
                    &["stream", "projected", "w3"],
                    "normed",
                ),
                NodeProto::new(between, &["normed"], "active"),
                NodeProto::new("MatMul", &["active", "w4"], "logits"),
            ],
        )
    }

    #[test]
    fn what_follows_the_last_attention_gets_the_chosen_tokens() {
        let edited = choose_logits(&layer("Sigmoid"), "logits").unwrap();
        let graph = ModelProto::decode(edited).unwrap().graph.unwrap();
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
        let graph = ModelProto::decode(edited).unwrap().graph.unwrap();
        assert_eq!(graph.node[3].input, ["attended", "w2"]);
        assert_eq!(graph.node[6].input, ["phi_edge.chosen_hidden.0", "w4"]);
    }

    #[test]
    fn the_exporters_graphs_are_cut_behind_the_last_attention() {
        for (file, graph) in exported() {
            let edited = choose_logits(&graph, "logits").unwrap();
            let graph = ModelProto::decode(edited).unwrap().graph.unwrap();
            let gathers = graph
                .node
                .iter()
                .filter(|node| node.output[0].starts_with(CHOSEN_HIDDEN))
                .count();
            assert_eq!(gathers, 2, "{file}");
        }
    }

    #[test]
    fn other_forms_are_left_alone() {
        assert_eq!(choose_logits(&model("Softmax"), "logits"), None);
        assert_eq!(choose_logits(&model("MatMul"), "scores"), None);
        assert_eq!(
            choose_logits(&Bytes::from_static(b"no protobuf at all"), "logits"),
            None
        );
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), cut in 0usize..400) {
            let _ = choose_logits(&bytes.into(), "logits");
            let whole = model("MatMul");
            let _ = choose_logits(&whole.slice(..cut.min(whole.len())), "logits");
        }
    }
}
