//! Copies of rows within the memory of a device, by a small graph on the same execution provider: the only form of copy
//! that every provider has.
//!
//! Each source `[places, heads, capacity, head_size]` gives the first tokens of one of its places; zeros fill what is behind
//! them. The result `[sources, heads, capacity, head_size]` is written to the memory of the target, on the device or on the host.

use std::collections::BTreeMap;
use std::ffi::CString;

use ort::memory::MemoryInfo;
use ort::session::{IoBinding, RunOptions, Session};
use prost::Message;

use crate::custom_operators;
use crate::error::{OnnxError, one_line};
use crate::isa::CpuResources;
use crate::library::Library;
use crate::onnx_proto::{
    AttributeProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto, ValueInfoProto,
    data_type,
};
use crate::provider::{ExecutionTarget, Provider, ProviderSettings};
use crate::raw::{self, Element, View};
use crate::session;

/// The version of ONNX's operators that the graph is written for, and of its format.
const OPSET: i64 = 17;
const IR_VERSION: i64 = 8;

const TARGET: &str = "target";
const DIMS: [&str; 4] = ["places", "heads", "capacity", "head_size"];

/// A copy of rows on one provider.
pub(super) struct RowGather {
    library: Library,
    provider: Provider,
    settings: ProviderSettings,
    element: Element,
    host: MemoryInfo<'static>,
    options: RunOptions,
    /// By the number of sources.
    graphs: BTreeMap<usize, GatherGraph>,
}

/// The first tokens of a place of a tensor.
#[derive(Clone, Copy)]
pub(super) struct GatherSource<'a> {
    pub(super) tensor: &'a View,
    pub(super) index: usize,
    pub(super) tokens: usize,
}

struct GatherGraph {
    // Dropped before the session that it belongs to.
    binding: IoBinding,
    session: Session,
    sources: Vec<SourceNames>,
    target: CString,
}

struct SourceNames {
    tensor: CString,
    start: CString,
    end: CString,
    pads: CString,
}

impl RowGather {
    /// The copy of rows of `element` on the provider of `target`.
    pub(super) fn new(
        library: &Library,
        target: ExecutionTarget<'_>,
        element: Element,
    ) -> Result<Self, OnnxError> {
        let host = raw::host_memory()?;
        Ok(Self {
            library: library.clone(),
            provider: target.provider,
            settings: target.settings.clone(),
            element,
            host,
            options: RunOptions::new()?,
            graphs: BTreeMap::new(),
        })
    }

    /// Writes the tokens of `sources` to `target`, a tensor of as many places of `capacity` tokens, which is none of them.
    pub(super) fn run(
        &mut self,
        sources: &[GatherSource<'_>],
        capacity: usize,
        target: &View,
    ) -> Result<(), String> {
        let mut graph = match self.graphs.remove(&sources.len()) {
            Some(graph) => graph,
            None => self.open(sources.len()).map_err(|error| error.to_string())?,
        };
        let outcome = graph.run(sources, capacity, target, &self.host, &self.options);
        self.graphs.insert(sources.len(), graph);
        outcome
    }

    fn open(&self, sources: usize) -> Result<GatherGraph, OnnxError> {
        let model = model(sources, self.element);
        // A copy needs no threads beside the caller's.
        let target = ExecutionTarget {
            provider: self.provider,
            settings: &self.settings,
        };
        let mut builder = session::builder(&self.library, target, CpuResources::ONE_THREAD)?;
        let session = custom_operators::commit(|| builder.commit_from_memory(&model))
            .map_err(|error| target.unavailable(one_line(error)))?;
        let c = |name: String| CString::new(name).map_err(|error| OnnxError::Runtime(error.to_string()));
        let names = (0..sources).map(|index| {
            Ok(SourceNames {
                tensor: c(tensor_name(index))?,
                start: c(start_name(index))?,
                end: c(end_name(index))?,
                pads: c(pads_name(index))?,
            })
        });
        Ok(GatherGraph {
            binding: session.create_binding()?,
            session,
            sources: names.collect::<Result<_, OnnxError>>()?,
            target: c(TARGET.to_owned())?,
        })
    }
}

impl GatherGraph {
    fn run(
        &mut self,
        sources: &[GatherSource<'_>],
        capacity: usize,
        target: &View,
        host: &MemoryInfo<'_>,
        options: &RunOptions,
    ) -> Result<(), String> {
        let mut numbers: Vec<[i64; 12]> = sources.iter().map(|source| bounds(source, capacity)).collect();
        let mut views = Vec::with_capacity(3 * sources.len());
        for ((names, source), numbers) in self.sources.iter().zip(sources).zip(&mut numbers) {
            raw::bind_input(&mut self.binding, &names.tensor, source.tensor)?;
            let (start, rest) = numbers.split_at_mut(2);
            let (end, pads) = rest.split_at_mut(2);
            for (name, numbers) in [(&names.start, start), (&names.end, end), (&names.pads, pads)] {
                let shape = [i64::try_from(numbers.len()).unwrap_or(0)];
                // SAFETY: the numbers are neither moved nor written before the run below has ended.
                let view = unsafe { View::new(host, numbers.as_mut_ptr().cast(), &shape, Element::I64)? };
                raw::bind_input(&mut self.binding, name, &view)?;
                views.push(view);
            }
        }
        raw::bind_output(&mut self.binding, &self.target, target)?;
        raw::run(&mut self.session, options, &self.binding)
    }
}

/// The bounds of a slice along the axes of places and of tokens (two starts, two ends), and eight pads.
fn bounds(source: &GatherSource<'_>, capacity: usize) -> [i64; 12] {
    let n = |number: usize| i64::try_from(number).unwrap_or(i64::MAX);
    let behind = capacity.saturating_sub(source.tokens);
    let start = [n(source.index), 0];
    let end = [n(source.index + 1), n(source.tokens)];
    let mut numbers = [0; 12];
    numbers[..2].copy_from_slice(&start);
    numbers[2..4].copy_from_slice(&end);
    numbers[4 + 4 + 2] = n(behind);
    numbers
}

/// The graph for this number of sources.
fn model(sources: usize, element: Element) -> Vec<u8> {
    let data_type = match element {
        Element::F16 => data_type::FLOAT16,
        _ => data_type::FLOAT,
    };
    let mut graph = GraphProto {
        name: "gather_rows".into(),
        initializer: vec![TensorProto {
            dims: vec![2],
            data_type: data_type::INT64,
            int64_data: vec![0, 2],
            name: "axes".into(),
            ..TensorProto::default()
        }],
        output: vec![ValueInfoProto::tensor(
            TARGET,
            data_type,
            &["sources", "heads", "room", "head_size"],
        )],
        ..GraphProto::default()
    };
    let mut padded = Vec::with_capacity(sources);
    for index in 0..sources {
        let [tensor, start, end, pads] = [
            tensor_name(index),
            start_name(index),
            end_name(index),
            pads_name(index),
        ];
        let places = format!("places_{index}");
        let capacity = format!("capacity_{index}");
        let dims = [places.as_str(), DIMS[1], capacity.as_str(), DIMS[3]];
        graph
            .input
            .push(ValueInfoProto::tensor(&tensor, data_type, &dims));
        for (name, dim) in [(&start, "two"), (&end, "two"), (&pads, "eight")] {
            graph
                .input
                .push(ValueInfoProto::tensor(name, data_type::INT64, &[dim]));
        }
        let slice = format!("tokens_{index}");
        graph
            .node
            .push(NodeProto::new("Slice", &[&tensor, &start, &end, "axes"], &slice));
        let out = if sources == 1 {
            TARGET.to_owned()
        } else {
            format!("row_{index}")
        };
        graph.node.push(NodeProto::new("Pad", &[&slice, &pads], &out));
        padded.push(out);
    }
    if sources > 1 {
        let rows: Vec<&str> = padded.iter().map(String::as_str).collect();
        let mut concat = NodeProto::new("Concat", &rows, TARGET);
        concat.attribute.push(AttributeProto::int("axis", 0));
        graph.node.push(concat);
    }
    ModelProto {
        ir_version: IR_VERSION,
        producer_name: "phi-edge".into(),
        graph: Some(graph),
        opset_import: vec![OperatorSetIdProto {
            domain: String::new(),
            version: OPSET,
        }],
    }
    .encode_to_vec()
}

fn tensor_name(index: usize) -> String {
    format!("source_{index}")
}

fn start_name(index: usize) -> String {
    format!("start_{index}")
}

fn end_name(index: usize) -> String {
    format!("end_{index}")
}

fn pads_name(index: usize) -> String {
    format!("pads_{index}")
}
