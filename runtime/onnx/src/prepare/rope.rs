//! LongRoPE's tables as inputs, in place of the `If` that chooses between them by the mask's width.
//!
//! A run's table is then the decoder's choice, and the graph, which held two tables of the whole context, shrinks from
//! tens of megabytes to the nodes alone.

use prost::Message;
use prost::bytes::Bytes;

use crate::prepare::graph_editor::{
    FieldEdit, GraphEditor, GraphField, TensorProto, ValueInfoProto, element, graph_field,
};
use crate::raw::Element;

/// Cosines and sines of the short factors, and behind them those of the long ones.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RopeTables {
    /// The inputs that take them.
    pub(crate) names: [String; 2],
    /// Cosines, then sines: each `[rows, width]`, row-major, little-endian.
    pub(crate) data: [Vec<u8>; 2],
    pub(crate) element: Element,
    /// Values a position has: half of what is rotated of a head.
    pub(crate) width: usize,
    /// Positions under the short factors; those under the long ones start behind them.
    pub(crate) short: usize,
    /// Positions under the long factors.
    pub(crate) long: usize,
}

impl RopeTables {
    /// Forgets positions that no row can have.
    pub(crate) fn limit(&mut self, positions: usize) {
        self.long = self.long.min(positions);
        let bytes = (self.short + self.long) * self.width * self.element.bytes();
        for data in &mut self.data {
            data.truncate(bytes);
            data.shrink_to_fit();
        }
    }
}

/// Takes the tables out of the graph. `None`: the graph is of another form.
pub(crate) fn take_tables(model: &[u8]) -> Option<(Vec<u8>, RopeTables)> {
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
    let choice = Choice::decode(Bytes::copy_from_slice(editor.node(at)?)).ok()?;
    let long = choice.branch("then_branch")?;
    let short = choice.branch("else_branch")?;
    let tables = join(names, &short, &long)?;
    let mut extra = Vec::new();
    for name in &tables.names {
        let kind = if tables.element == Element::F16 {
            element::FLOAT16
        } else {
            element::FLOAT
        };
        let input = ValueInfoProto::open(name, kind, &["phi_edge.positions", "phi_edge.rotated"]);
        extra.push((graph_field::INPUT, input.encode_to_vec()));
    }
    let graph = editor.write(
        |part| {
            Some(match part {
                GraphField::Node(index) if index == at => FieldEdit::Drop,
                // What was known of the tables' shapes is the input's to say.
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
        element::FLOAT => Element::F32,
        element::FLOAT16 => Element::F16,
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

/// An `If` with its branches.
#[derive(Clone, PartialEq, prost::Message)]
struct Choice {
    #[prost(message, repeated, tag = "5")]
    attribute: Vec<BranchAttribute>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct BranchAttribute {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(message, optional, tag = "6")]
    graph: Option<Branch>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Branch {
    #[prost(message, repeated, tag = "1")]
    node: Vec<Constant>,
    #[prost(message, repeated, tag = "5")]
    initializer: Vec<TensorProto>,
    #[prost(message, repeated, tag = "12")]
    output: Vec<ValueInfoProto>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Constant {
    #[prost(string, repeated, tag = "2")]
    output: Vec<String>,
    #[prost(string, tag = "4")]
    op_type: String,
    #[prost(message, repeated, tag = "5")]
    attribute: Vec<TensorAttribute>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct TensorAttribute {
    #[prost(message, optional, tag = "5")]
    t: Option<TensorProto>,
}

impl Choice {
    /// What a branch returns: cosines and sines, or sines and cosines, in the order of the node's outputs.
    fn branch(&self, name: &str) -> Option<[TensorProto; 2]> {
        let branch = self.attribute.iter().find(|attribute| attribute.name == name)?;
        let branch = branch.graph.as_ref()?;
        let tables: Option<Vec<TensorProto>> = branch
            .output
            .iter()
            .map(|output| branch.table(output.name()))
            .collect();
        tables?.try_into().ok()
    }
}

impl Branch {
    fn table(&self, name: &str) -> Option<TensorProto> {
        if let Some(tensor) = self.initializer.iter().find(|tensor| tensor.name == name) {
            return Some(tensor.clone());
        }
        let node = self
            .node
            .iter()
            .find(|node| node.output.iter().any(|output| output == name))?;
        if node.op_type != "Constant" {
            return None;
        }
        node.attribute.iter().find_map(|attribute| attribute.t.clone())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::prepare::graph_editor::testing::{exported, read};

    #[test]
    fn the_exporters_tables_are_taken() {
        for (file, graph) in exported() {
            let (edited, mut tables) = take_tables(&graph).unwrap();
            assert!(
                read(&edited).node.iter().all(|node| node.op_type != "If"),
                "{file}"
            );
            let inputs: Vec<String> = read(&edited).input.iter().map(|i| i.name().to_owned()).collect();
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
            let mut graph = exported()[1].1.clone();
            #[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)]
            let _ = take_tables(&graph[..(graph.len() as f64 * share) as usize]);
            let at = flip.index(graph.len());
            graph[at] ^= 0x55;
            let _ = take_tables(&graph);
        }
    }
}
