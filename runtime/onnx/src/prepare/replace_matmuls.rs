//! The edit that replaces matmuls with weights of four bits by the custom operator ([`crate::matmul`]).

use std::collections::{HashMap, HashSet};

use prost::Message;
use prost::bytes::Bytes;

use crate::custom_operators::DOMAIN;
use crate::matmul::{OPERATOR, takes_block};
use crate::onnx_proto::{NodeProto, ValueInfoProto, data_type, graph_field};
use crate::prepare::graph_editor::{
    FieldEdit, GraphEditor, GraphField, with_inputs, with_operator, with_opset,
};

/// Replaces each `MatMulNBits` that the custom operator supports, but for those of the shapes `left_out`; inputs, attributes and
/// weights stay. `None`: the graph has none.
///
/// Supported are weights of four bits and `f32` scales, both held by the graph, accuracy level 4 (rows may be
/// quantised to eight bits), no permutation and no bias.
pub(crate) fn replace_matmuls(model: &Bytes, left_out: &[ProductShape]) -> Option<Bytes> {
    let editor = GraphEditor::read(model)?;
    let held: HashMap<String, i32> = editor.initializers()?;
    let is_left_out = |node| ProductShape::of(node).is_some_and(|shape| left_out.contains(&shape));
    let fitting: Vec<bool> = editor
        .nodes
        .iter()
        .map(|node| fits(node, &held) && !is_left_out(node))
        .collect();
    if !fitting.contains(&true) {
        return None;
    }
    let edited = editor.write(
        |part| match part {
            GraphField::Node(index) if fitting[index] => {
                let inputs: Vec<String> = editor.nodes[index].input.iter().take(4).cloned().collect();
                // An omitted input may not be the last.
                let count = inputs.iter().filter(|input| !input.is_empty()).count();
                let node = with_inputs(editor.node(index)?, &inputs[..count])?;
                Some(FieldEdit::Put(with_operator(&node, OPERATOR, DOMAIN)?))
            }
            // The exporter's shapes of intermediate values are dropped: they give values of chosen rows the shape of
            // all rows, and the library, which infers nothing through an operator that it does not know, plans
            // buffers by them.
            GraphField::Named(graph_field::VALUE_INFO, _) => Some(FieldEdit::Drop),
            _ => Some(FieldEdit::Keep),
        },
        &[],
    )?;
    Some(with_opset(edited, DOMAIN, 1))
}

/// The shape of a product's weights, on which the speed of kernels depends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ProductShape {
    /// The values of a row that goes in.
    pub k: usize,
    /// The values of a row that comes out.
    pub n: usize,
    /// Values along `k` that share a scale.
    pub block: usize,
    /// Whether the blocks have zero points of their own.
    pub zero_points: bool,
}

impl ProductShape {
    /// The shape of a node that the custom operator supports.
    fn of(node: &NodeProto) -> Option<Self> {
        let size = |name: &str| attribute(node, name).and_then(|size| usize::try_from(size).ok());
        Some(Self {
            k: size("K")?,
            n: size("N")?,
            block: size("block_size")?,
            zero_points: node.input.get(3).is_some_and(|zeros| !zeros.is_empty()),
        })
    }
}

impl std::fmt::Display for ProductShape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { k, n, block, .. } = self;
        write!(f, "{k} x {n} in blocks of {block}")?;
        if self.zero_points {
            f.write_str(" with zero points")?;
        }
        Ok(())
    }
}

/// One matmul of a graph of single matmuls.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SingleMatmul {
    /// The graph's input, `f32 [rows, k]`.
    pub(crate) input: String,
    /// The graph's output, `f32 [rows, n]`.
    pub(crate) output: String,
    pub(crate) shape: ProductShape,
}

/// Returns a graph of the first of `model`'s matmuls of each shape that the custom operator supports and that `is_wanted`, each
/// with an input of its own: the graph that the operator is tried on. `None`: there is none.
pub(crate) fn single_matmuls(
    model: &Bytes,
    is_wanted: impl Fn(&ProductShape) -> bool,
) -> Option<(Bytes, Vec<SingleMatmul>)> {
    let editor = GraphEditor::read(model)?;
    let held = editor.initializers()?;
    let mut shapes = HashSet::new();
    let mut singles: HashMap<usize, SingleMatmul> = HashMap::new();
    for (index, node) in editor.nodes.iter().enumerate() {
        if fits(node, &held)
            && let Some(shape) = ProductShape::of(node).filter(&is_wanted)
            && shapes.insert(shape)
        {
            let single = SingleMatmul {
                input: format!("phi_edge.rows.{index}"),
                output: node.output.first()?.clone(),
                shape,
            };
            singles.insert(index, single);
        }
    }
    let weights: HashSet<&str> = singles
        .keys()
        .flat_map(|&index| &editor.nodes[index].input[1..])
        .map(String::as_str)
        .collect();
    let mut extra = Vec::new();
    for single in singles.values() {
        let dims = ["phi_edge.count", &format!("phi_edge.values.{}", single.output)];
        for (field, name) in [
            (graph_field::INPUT, &single.input),
            (graph_field::OUTPUT, &single.output),
        ] {
            let dims = if field == graph_field::INPUT {
                [dims[0], &single.input]
            } else {
                dims
            };
            extra.push((
                field,
                ValueInfoProto::tensor(name, data_type::FLOAT, &dims).encode_to_vec(),
            ));
        }
    }
    let graph = editor.write(
        |part| {
            Some(match part {
                GraphField::Node(index) => match singles.get(&index) {
                    Some(single) => {
                        let mut inputs = editor.nodes[index].input.clone();
                        single.input.clone_into(inputs.first_mut()?);
                        FieldEdit::Put(with_inputs(editor.node(index)?, &inputs)?)
                    }
                    None => FieldEdit::Drop,
                },
                GraphField::Named(graph_field::INITIALIZER, name) if weights.contains(name) => {
                    FieldEdit::Keep
                }
                GraphField::Named(..) => FieldEdit::Drop,
                GraphField::Other => FieldEdit::Keep,
            })
        },
        &extra,
    )?;
    (!singles.is_empty()).then(|| (graph, singles.into_values().collect()))
}

fn attribute(node: &NodeProto, name: &str) -> Option<i64> {
    let mut all = node.attribute.iter();
    all.find(|attribute| attribute.name == name)
        .map(|attribute| attribute.i)
}

/// Whether the operator supports `node`. `held` are the element types of the graph's initializers.
fn fits(node: &NodeProto, held: &HashMap<String, i32>) -> bool {
    if node.op_type != "MatMulNBits" || node.outputs().count() != 1 {
        return false;
    }
    let known = ["K", "N", "bits", "block_size", "accuracy_level"];
    let attribute = |name: &str| attribute(node, name);
    let attributes = node
        .attribute
        .iter()
        .all(|own| known.contains(&own.name.as_str()))
        && attribute("accuracy_level") == Some(4)
        && attribute("bits").unwrap_or(4) == 4
        && attribute("block_size").is_some_and(takes_block)
        && ["K", "N"]
            .iter()
            .all(|name| attribute(name).is_some_and(|size| size > 0));
    let input = |at: usize| node.input.get(at).map_or("", String::as_str);
    let of = |at: usize| held.get(input(at)).copied();
    let inputs = !input(0).is_empty()
        && of(0).is_none()
        && of(1) == Some(data_type::UINT8)
        && of(2) == Some(data_type::FLOAT)
        && (input(3).is_empty() || of(3) == Some(data_type::UINT8))
        && (4..node.input.len()).all(|at| input(at).is_empty());
    attributes && inputs
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::onnx_proto::{AttributeProto, ModelProto};
    use crate::prepare::test_graphs::exported;

    #[test]
    fn every_product_of_accuracy_level_4_is_replaced() {
        let [(file, graph), (exact, other)] = exported();
        assert_eq!(
            replace_matmuls(&other, &[]),
            None,
            "{exact} asks for more accuracy"
        );
        let before = ModelProto::decode(graph.clone()).unwrap();
        let after = ModelProto::decode(replace_matmuls(&graph, &[]).unwrap()).unwrap();
        let own = after.opset_import.last().unwrap();
        assert_eq!((own.domain.as_str(), own.version), (DOMAIN, 1), "{file}");
        assert_eq!(after.opset_import.len(), before.opset_import.len() + 1);
        let (before, after) = (before.graph.unwrap(), after.graph.unwrap());
        let mut replaced = 0;
        for (before, after) in before.node.iter().zip(&after.node) {
            if before.op_type == "MatMulNBits" {
                replaced += 1;
                let mut expected = before.clone();
                OPERATOR.clone_into(&mut expected.op_type);
                DOMAIN.clone_into(&mut expected.domain);
                assert_eq!(after, &expected);
            } else {
                assert_eq!(after, before);
            }
        }
        assert!(replaced > 4, "{file}");
        let again = ModelProto {
            graph: Some(after),
            ..ModelProto::default()
        };
        assert_eq!(
            replace_matmuls(&again.encode_to_vec().into(), &[]),
            None,
            "{file} is edited already"
        );
    }

    #[test]
    fn single_products_are_one_of_each_shape() {
        let [(file, graph), _] = exported();
        let (singles, products) = single_matmuls(&graph, |_| true).unwrap();
        let shapes: HashSet<ProductShape> = products.iter().map(|product| product.shape).collect();
        assert_eq!(shapes.len(), products.len(), "{file}");
        let read = ModelProto::decode(singles.clone()).unwrap().graph.unwrap();
        assert_eq!(read.node.len(), products.len());
        assert_eq!(
            (read.input.len(), read.output.len()),
            (products.len(), products.len())
        );
        assert_eq!(read.initializer.len(), 2 * products.len());
        assert!(replace_matmuls(&singles, &[]).is_some());
        assert_eq!(
            single_matmuls(&replace_matmuls(&graph, &[]).unwrap(), |_| true),
            None
        );
    }

    #[test]
    fn shapes_that_are_left_out_stay_as_they_are() {
        let [(file, graph), _] = exported();
        let (_, products) = single_matmuls(&graph, |_| true).unwrap();
        let all: Vec<ProductShape> = products.iter().map(|product| product.shape).collect();
        assert!(all.len() > 1, "{file}");
        assert_eq!(replace_matmuls(&graph, &all), None);
        let left_out = all[0];
        let edited = replace_matmuls(&graph, &[left_out]).unwrap();
        let (_, rest) = single_matmuls(&edited, |_| true).unwrap();
        assert_eq!(rest.len(), 1);
        assert_eq!(rest[0].shape, left_out);
        let (_, one) = single_matmuls(&graph, |shape| *shape == left_out).unwrap();
        assert_eq!(one[0].shape, left_out);
        let other = ProductShape {
            block: left_out.block * 2,
            ..left_out
        };
        assert_eq!(replace_matmuls(&graph, &[other]), replace_matmuls(&graph, &[]));
    }

    fn node() -> NodeProto {
        let mut node = NodeProto::new("MatMulNBits", &["x", "w", "s"], "y");
        for (name, value) in [
            ("K", 64),
            ("N", 32),
            ("bits", 4),
            ("block_size", 32),
            ("accuracy_level", 4),
        ] {
            node.attribute.push(AttributeProto::int(name, value));
        }
        node
    }

    fn held() -> HashMap<String, i32> {
        [
            ("w", data_type::UINT8),
            ("s", data_type::FLOAT),
            ("z", data_type::UINT8),
            ("zf", data_type::FLOAT),
        ]
        .map(|(name, kind)| (name.to_owned(), kind))
        .into()
    }

    #[test]
    fn what_the_operator_does_not_compute_is_left_alone() {
        let check = |change: fn(&mut NodeProto), expected: bool| {
            let mut node = node();
            change(&mut node);
            assert_eq!(fits(&node, &held()), expected, "{node:?}");
        };
        check(|_| (), true);
        check(|node| node.input.push("z".into()), true);
        check(|node| node.input.extend(["z", "", ""].map(Into::into)), true);
        check(|node| node.input.push("zf".into()), false);
        check(|node| node.input.extend(["z", "order"].map(Into::into)), false);
        check(|node| node.input.extend(["", "", "bias"].map(Into::into)), false);
        check(|node| node.input[1] = "computed".into(), false);
        check(|node| node.attribute[2].i = 8, false);
        check(|node| node.attribute[3].i = 512, false);
        check(|node| node.attribute[4].i = 0, false);
        check(|node| node.attribute.truncate(4), false);
        check(
            |node| node.attribute.push(AttributeProto::int("weight_prepacked", 1)),
            false,
        );
        check(|node| node.op_type = "MatMul".into(), false);
    }

    #[test]
    fn a_graph_without_such_products_is_left_alone() {
        let graph = crate::prepare::test_graphs::graph_of(vec![NodeProto::new("MatMul", &["x", "w"], "y")]);
        assert_eq!(replace_matmuls(&graph, &[]), None);
        assert_eq!(
            replace_matmuls(&Bytes::from_static(b"no protobuf at all"), &[]),
            None
        );
    }
}
