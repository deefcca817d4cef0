//! The cut of an image encoder's graph: the part that treats each crop by itself, and the part that joins the crops.

use std::collections::{HashMap, HashSet};

use prost::Message;
use prost::bytes::Bytes;

use crate::onnx_proto::{NodeProto, ValueInfoProto, graph_field};
use crate::prepare::graph_editor::{FieldEdit, GraphEditor, GraphField};

/// The most places of a cut that are tried.
const MAX_CUTS: usize = 4;
/// Operators whose results tell a shape: they depend on no element of their input.
const SHAPE_OPERATORS: [&str; 2] = ["Shape", "Size"];

/// The names of an encoder graph's inputs and of its output.
pub(crate) struct EncoderNames<'a> {
    pub(crate) pixel_values: &'a str,
    pub(crate) image_sizes: &'a str,
    pub(crate) image_features: &'a str,
}

/// The two parts of an encoder's graph.
pub(crate) struct CutEncoder {
    /// The value between them: the first graph's output, an input of the second.
    pub(crate) value: String,
    /// Pixels to the value.
    pub(crate) crops: Bytes,
    /// The value and the sizes to features. Of the pixels, at most the shape is looked at.
    pub(crate) join: Bytes,
}

/// Returns the cuts that can be tried, those first that leave least to the join.
///
/// A graph can be cut at a value through which everything must go that depends on pixels, and which does not depend on
/// the images' sizes: whatever comes before may treat each crop by itself. Whether it does is for the trial to say.
pub(crate) fn cut_encoder(model: &Bytes, names: &EncoderNames<'_>) -> Vec<CutEncoder> {
    let Some(editor) = GraphEditor::read(model) else {
        return Vec::new();
    };
    let uses: Vec<Vec<&str>> = editor.nodes.iter().map(used).collect();
    let mut cuts = Vec::new();
    for value in bottlenecks(&editor.nodes, &uses, names).into_iter().rev() {
        if cuts.len() == MAX_CUTS {
            break;
        }
        cuts.extend(cut_at(&editor, &uses, names, value));
    }
    cuts
}

/// The values that a node uses, those among them that its inner graphs take from outside.
fn used(node: &NodeProto) -> Vec<&str> {
    let mut names: Vec<&str> = node.input.iter().map(String::as_str).collect();
    for graph in node.attribute.iter().filter_map(|attribute| attribute.g.as_ref()) {
        // Names of inner values as well: outside of the graph nothing has these.
        names.extend(graph.node.iter().flat_map(used));
        names.extend(graph.output.iter().map(|output| output.name.as_str()));
    }
    names.retain(|name| !name.is_empty());
    names
}

/// The values that depend on `input`'s elements.
fn dependent<'a>(nodes: &'a [NodeProto], uses: &[Vec<&'a str>], input: &'a str) -> HashSet<&'a str> {
    let mut found = HashSet::from([input]);
    for (node, uses) in nodes.iter().zip(uses) {
        if !SHAPE_OPERATORS.contains(&node.op_type.as_str()) && uses.iter().any(|name| found.contains(name)) {
            found.extend(node.outputs());
        }
    }
    found
}

/// The values at which a graph can be cut, in the order of computation. Exporters write nodes in that order.
fn bottlenecks<'a>(nodes: &'a [NodeProto], uses: &[Vec<&'a str>], names: &EncoderNames<'a>) -> Vec<&'a str> {
    let by_pixels = dependent(nodes, uses, names.pixel_values);
    let by_sizes = dependent(nodes, uses, names.image_sizes);
    let mut last_use: HashMap<&str, usize> = HashMap::from([(names.image_features, nodes.len())]);
    for (index, (node, uses)) in nodes.iter().zip(uses).enumerate() {
        if !SHAPE_OPERATORS.contains(&node.op_type.as_str()) {
            for name in uses {
                let last = last_use.entry(name).or_insert(index);
                *last = (*last).max(index);
            }
        }
    }
    let mut open = HashSet::from([names.pixel_values]);
    let mut found = Vec::new();
    for (index, node) in nodes.iter().enumerate() {
        open.extend(node.outputs().filter(|output| by_pixels.contains(output)));
        open.retain(|name| last_use.get(name).is_some_and(|last| *last > index));
        let mut values = open.iter();
        if let (Some(&value), None) = (values.next(), values.next())
            && value != names.pixel_values
            && value != names.image_features
            && !by_sizes.contains(value)
            && found.last() != Some(&value)
        {
            found.push(value);
        }
    }
    found
}

/// The graph cut at `value`; `None` if the join would compute a part of the first graph again.
fn cut_at(
    editor: &GraphEditor,
    uses: &[Vec<&str>],
    names: &EncoderNames<'_>,
    value: &str,
) -> Option<CutEncoder> {
    let nodes = &editor.nodes;
    let before = needed(nodes, uses, value, None);
    let behind = needed(nodes, uses, names.image_features, Some(value));
    let by_pixels = dependent(nodes, uses, names.pixel_values);
    let again = |index: &usize| {
        before.contains(index) && nodes[*index].outputs().any(|output| by_pixels.contains(output))
    };
    if behind.iter().any(again) {
        return None;
    }
    // Within the graph only names are known; pixels and what is made of them have one type.
    let data_type = *editor.inputs()?.get(names.pixel_values)?;
    let between = ValueInfoProto::tensor_of_any_shape(value, data_type).encode_to_vec();
    let outputs = |name: &str| name == names.image_features;
    Some(CutEncoder {
        value: value.to_owned(),
        crops: part(
            editor,
            uses,
            &before,
            |_| false,
            &[(graph_field::OUTPUT, between.clone())],
        )?,
        join: part(editor, uses, &behind, outputs, &[(graph_field::INPUT, between)])?,
    })
}

/// The nodes that `output` depends on, but for those before `stop`.
fn needed(nodes: &[NodeProto], uses: &[Vec<&str>], output: &str, stop: Option<&str>) -> HashSet<usize> {
    let producers: HashMap<&str, usize> = (0..nodes.len())
        .flat_map(|index| nodes[index].outputs().map(move |output| (output, index)))
        .collect();
    let mut found = HashSet::new();
    let mut open = vec![output];
    while let Some(name) = open.pop() {
        if Some(name) != stop
            && let Some(&index) = producers.get(name)
            && found.insert(index)
        {
            open.extend(&uses[index]);
        }
    }
    found
}

/// The graph of these nodes, with the weights and inputs that they use.
fn part(
    editor: &GraphEditor,
    uses: &[Vec<&str>],
    nodes: &HashSet<usize>,
    is_output: impl Fn(&str) -> bool,
    extra: &[(u32, Vec<u8>)],
) -> Option<Bytes> {
    let names: HashSet<&str> = nodes.iter().flat_map(|&index| &uses[index]).copied().collect();
    editor.write(
        |part| {
            Some(match part {
                GraphField::Node(index) if !nodes.contains(&index) => FieldEdit::Drop,
                GraphField::Named(graph_field::OUTPUT, name) if is_output(name) => FieldEdit::Keep,
                GraphField::Named(graph_field::OUTPUT | graph_field::VALUE_INFO, _) => FieldEdit::Drop,
                GraphField::Named(_, name) if !names.contains(name) => FieldEdit::Drop,
                _ => FieldEdit::Keep,
            })
        },
        extra,
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::onnx_proto::{AttributeProto, GraphProto, ModelProto, TensorProto, data_type};
    use crate::prepare::test_graphs::read;

    const NAMES: EncoderNames<'static> = EncoderNames {
        pixel_values: "pixels",
        image_sizes: "sizes",
        image_features: "features",
    };

    fn model(nodes: Vec<NodeProto>) -> Bytes {
        let input = |name: &str| ValueInfoProto::tensor(name, data_type::FLOAT, &["images"]);
        let weight = |name: &str| TensorProto {
            name: name.into(),
            ..TensorProto::default()
        };
        let graph = GraphProto {
            node: nodes,
            input: vec![input("pixels"), input("sizes")],
            output: vec![input("features")],
            initializer: vec![weight("w1"), weight("w2"), weight("w3")],
            ..GraphProto::default()
        };
        ModelProto {
            graph: Some(graph),
            ..ModelProto::default()
        }
        .encode_to_vec()
        .into()
    }

    /// A convolution, a residual layer, and a loop that takes the crops together by the sizes.
    fn nodes() -> Vec<NodeProto> {
        let body = GraphProto {
            node: vec![NodeProto::new("Slice", &["encoded", "sizes"], "row")],
            ..GraphProto::default()
        };
        let mut merge = NodeProto::new("Loop", &["count"], "merged");
        merge.attribute.push(AttributeProto {
            name: "body".into(),
            g: Some(body),
            ..AttributeProto::default()
        });
        vec![
            NodeProto::new("Shape", &["pixels"], "count"),
            NodeProto::new("Conv", &["pixels", "w1"], "patches"),
            NodeProto::new("MatMul", &["patches", "w2"], "layer"),
            NodeProto::new("Add", &["patches", "layer"], "encoded"),
            merge,
            NodeProto::new("MatMul", &["merged", "w3"], "features"),
        ]
    }

    #[test]
    fn an_encoder_is_cut_before_its_crops_are_joined() {
        let cuts = cut_encoder(&model(nodes()), &NAMES);
        let values: Vec<&str> = cuts.iter().map(|cut| cut.value.as_str()).collect();
        assert_eq!(values, ["encoded", "patches"]);
        let crops = read(&cuts[0].crops);
        let names =
            |values: &[ValueInfoProto]| values.iter().map(|value| value.name.clone()).collect::<Vec<_>>();
        assert_eq!(
            (names(&crops.input), names(&crops.output)),
            (vec!["pixels".into()], vec!["encoded".into()])
        );
        assert_eq!(crops.node.len(), 3);
        assert_eq!(crops.initializer.len(), 2);
        let join = read(&cuts[0].join);
        assert_eq!(names(&join.input), ["pixels", "sizes", "encoded"]);
        assert_eq!(names(&join.output), ["features"]);
        assert_eq!(join.node.len(), 3);
        assert_eq!(join.initializer.len(), 1);
    }

    #[test]
    fn what_can_not_be_cut_is_left_whole() {
        // The sizes come in before the first layer.
        let mut early = nodes();
        early[1].input.push("sizes".into());
        assert!(cut_encoder(&model(early), &NAMES).is_empty());
        // The join looks at pixels.
        let mut late = nodes();
        late[5].input.push("pixels".into());
        assert!(cut_encoder(&model(late), &NAMES).is_empty());
        // The join asks for the shape of an inner value, which would be computed again.
        let mut inner = nodes();
        inner.insert(4, NodeProto::new("Shape", &["layer"], "inner"));
        inner[5].input.push("inner".into());
        let values: Vec<String> = cut_encoder(&model(inner), &NAMES)
            .into_iter()
            .map(|cut| cut.value)
            .collect();
        assert_eq!(values, ["patches"]);
        let whole = model(nodes());
        for length in 0..whole.len() {
            let _ = cut_encoder(&whole.slice(..length), &NAMES);
        }
    }
}
