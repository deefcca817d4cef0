//! The edit that makes LongRoPE's tables inputs, in place of the `If` that selects them by the mask's width.
//!
//! The decoder then selects a run's table, and the graph, which held two tables of the whole context, shrinks from
//! tens of megabytes to the nodes alone.

use prost::Message;
use prost::bytes::Bytes;

use crate::onnx_proto::{GraphProto, NodeProto, TensorProto, ValueInfoProto, data_type, graph_field};
use crate::prepare::graph_editor::{FieldEdit, GraphEditor, GraphField};
use crate::raw::Element;

/// LongRoPE's tables: cosines and sines of the short factors, and behind them those of the long ones.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RopeTables {
    /// The inputs that take them.
    pub(crate) names: [String; 2],
    /// Cosines, then sines: each `[rows, width]`, row-major, little-endian.
    pub(crate) data: [Vec<u8>; 2],
    pub(crate) element: Element,
    /// The values of a position: half of a head's rotated dimensions.
    pub(crate) width: usize,
    /// Positions under the short factors; those under the long ones start behind them.
    pub(crate) short: usize,
    /// Positions under the long factors.
    pub(crate) long: usize,
}

impl RopeTables {
    /// Drops positions that no row can have.
    pub(crate) fn limit(&mut self, positions: usize) {
        self.long = self.long.min(positions);
        let bytes = (self.short + self.long) * self.width * self.element.bytes();
        for data in &mut self.data {
            data.truncate(bytes);
            data.shrink_to_fit();
        }
    }
}

/// Moves the tables out of the graph. `None`: the graph is of another form.
pub(crate) fn take_tables(model: &Bytes) -> Option<(Bytes, RopeTables)> {
    let editor = GraphEditor::read(model)?;
    let mut choices = (0..editor.nodes.len()).filter(|&index| editor.nodes[index].op_type == "If");
    let at = choices.next()?;
    if choices.next().is_some() {
        return None;
    }
    // The first branch is taken where the sequence is longer than the boundary.
    let condition = editor.nodes[at].input.first()?;
    let compare = editor
        .nodes
        .iter()
        .find(|node| node.outputs().any(|name| name == condition))?;
    if !["Greater", "GreaterOrEqual"].contains(&compare.op_type.as_str()) {
        return None;
    }
    let names: [String; 2] = editor.nodes[at].output.clone().try_into().ok()?;
    let long = branch(&editor.nodes[at], "then_branch")?;
    let short = branch(&editor.nodes[at], "else_branch")?;
    let tables = join(names, &short, &long)?;
    let mut extra = Vec::new();
    for name in &tables.names {
        let kind = if tables.element == Element::F16 {
            data_type::FLOAT16
        } else {
            data_type::FLOAT
        };
        let input = ValueInfoProto::tensor(name, kind, &["phi_edge.positions", "phi_edge.rotated"]);
        extra.push((graph_field::INPUT, input.encode_to_vec()));
    }
    let graph = editor.write(
        |part| {
            Some(match part {
                GraphField::Node(index) if index == at => FieldEdit::Drop,
                // The new inputs declare the tables' shapes.
                GraphField::Named(graph_field::VALUE_INFO, name)
                    if tables.names.iter().any(|n| n == name) =>
                {
                    FieldEdit::Drop
                }
                _ => FieldEdit::Keep,
            })
        },
        &extra,
    )?;
    Some((graph, tables))
}

fn join(names: [String; 2], short: &[TensorProto; 2], long: &[TensorProto; 2]) -> Option<RopeTables> {
    let element = match short[0].data_type {
        data_type::FLOAT => Element::F32,
        data_type::FLOAT16 => Element::F16,
        _ => return None,
    };
    let dims = |table: &TensorProto| -> Option<[usize; 2]> {
        let [rows, width] = table.dims.as_slice() else {
            return None;
        };
        let (rows, width) = (usize::try_from(*rows).ok()?, usize::try_from(*width).ok()?);
        let whole = table.data_type == short[0].data_type
            && table.raw_data.len() == rows.checked_mul(width)?.checked_mul(element.bytes())?;
        whole.then_some([rows, width])
    };
    let ([short_rows, width], [long_rows, long_width]) = (dims(&short[0])?, dims(&long[0])?);
    let same = dims(&short[1])? == [short_rows, width]
        && dims(&long[1])? == [long_rows, width]
        && long_width == width
        && width > 0;
    let joined = |side: usize| [short[side].raw_data.as_ref(), long[side].raw_data.as_ref()].concat();
    same.then(|| RopeTables {
        names,
        data: [joined(0), joined(1)],
        element,
        width,
        short: short_rows,
        long: long_rows,
    })
}

/// The tables that a branch of an `If` returns: cosines and sines, or sines and cosines, in the order of the node's outputs.
fn branch(choice: &NodeProto, name: &str) -> Option<[TensorProto; 2]> {
    let branch = choice.attribute(name)?.g.as_ref()?;
    let tables: Option<Vec<TensorProto>> = branch
        .output
        .iter()
        .map(|output| table(branch, &output.name))
        .collect();
    tables?.try_into().ok()
}

/// The tensor that a branch holds under this name: an initializer or a constant.
fn table(branch: &GraphProto, name: &str) -> Option<TensorProto> {
    if let Some(tensor) = branch.initializer.iter().find(|tensor| tensor.name == name) {
        return Some(tensor.clone());
    }
    let node = branch
        .node
        .iter()
        .find(|node| node.output.iter().any(|output| output == name))?;
    if node.op_type != "Constant" {
        return None;
    }
    node.attribute.iter().find_map(|attribute| attribute.t.clone())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::prepare::test_graphs::{exported, read};

    #[test]
    fn the_exporters_tables_are_taken() {
        for (file, graph) in exported() {
            let (edited, mut tables) = take_tables(&graph).unwrap();
            assert!(
                read(&edited).node.iter().all(|node| node.op_type != "If"),
                "{file}"
            );
            let inputs: Vec<String> = read(&edited).input.iter().map(|i| i.name.clone()).collect();
            assert!(
                inputs.ends_with(&["cos_cache".to_owned(), "sin_cache".to_owned()]),
                "{inputs:?}"
            );
            let (short, long) = if file.contains("demo") {
                (1024, 2048)
            } else {
                (64, 256)
            };
            assert_eq!((tables.short, tables.long), (short, long), "{file}");
            let value = |side: usize, row: usize| {
                let at = row * tables.width * 4;
                f32::from_le_bytes(tables.data[side][at..at + 4].try_into().unwrap())
            };
            // Position 0 of either table is turned by nothing: its cosine is LongRoPE's scale, its sine 0.
            assert!(value(0, 0) >= 1.0 && value(0, short) >= value(0, 0), "{file}");
            assert_eq!((value(1, 0), value(1, short)), (0.0, 0.0), "{file}");
            // The first pair of dimensions is turned by about one radian a position under the short factors.
            assert!(value(1, 1) > 0.5, "{file}");
            tables.limit(100);
            assert_eq!(tables.data[0].len(), (short + 100) * tables.width * 4);
        }
    }

    #[test]
    fn a_graph_without_a_choice_is_left_alone() {
        let (graph, _) = take_tables(&exported()[0].1).unwrap();
        assert_eq!(take_tables(&graph), None);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn cut_files_make_nothing_panic(share in 0.0f64..1.0, flip in any::<proptest::sample::Index>()) {
            let graph = exported()[1].1.clone();
            #[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)]
            let _ = take_tables(&graph.slice(..(graph.len() as f64 * share) as usize));
            let at = flip.index(graph.len());
            let mut flipped = graph.to_vec();
            flipped[at] ^= 0x55;
            let _ = take_tables(&flipped.into());
        }
    }
}
