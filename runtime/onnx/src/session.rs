//! Sessions: a graph opened on an execution provider, validated against its config.

use std::path::Path;

use ort::session::Session;
use ort::session::builder::{GraphOptimizationLevel, SessionBuilder};
use ort::value::{Outlet, TensorElementType, ValueType};
use phi_edge_models::GenaiConfig;

use crate::custom_operators;
use crate::error::{OnnxError, one_line};
use crate::graph::GraphFacts;
use crate::isa::{CpuResources, Isa};
use crate::library::Library;
use crate::prepare::{BLOCK_TABLE, KV_BLOCKS, Prepare, RopeTables};
use crate::product_choice::ProductChoice;
use crate::provider::{ExecutionTarget, NodePlacement, Provider, RECORD_PLACEMENT, check_placement};
use crate::raw::Element;

/// An open graph.
pub(crate) struct OpenGraph {
    pub(crate) session: Session,
    /// The library that runs it.
    pub(crate) library: Library,
    /// The provider that runs it: never `auto`.
    pub(crate) provider: Provider,
    /// Where its nodes run; `None`: all of them on the processor.
    pub(crate) placement: Option<NodePlacement>,
    /// The instruction set of the custom operators, where the session has them.
    pub(crate) isa: Option<Isa>,
    pub(crate) kv: GraphKv,
    pub(crate) logits_element: Element,
    /// The graph's vocabulary where it is fixed; the config's may be padded.
    pub(crate) vocab_size: usize,
    /// The graph computes chosen logits alone ([`crate::prepare::LOGITS_ROWS`]).
    pub(crate) chooses_logits: bool,
    /// The input that takes positions, if the graph has one.
    pub(crate) position_ids: Option<String>,
    /// The element type of the features of images, if the graph takes them.
    pub(crate) image_features: Option<Element>,
}

/// The form in which a graph takes keys and values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum GraphKv {
    /// As tensors of past and present.
    Tensors(Element),
    /// In blocks of the custom operator for attention.
    Blocks,
    /// In the pool of `PagedAttention`.
    Paged(Element),
}

/// An open graph, what its file says, and how it is edited.
pub(crate) struct OpenModel {
    pub(crate) graph: OpenGraph,
    pub(crate) facts: GraphFacts,
    /// The rope tables that its inputs take, where the edits made inputs of them.
    pub(crate) tables: Option<RopeTables>,
    pub(crate) prepared: Prepare,
    /// Why attention is not computed by the custom operator, where it is not and that is known.
    pub(crate) attention_fault: Option<String>,
    /// Why keys and values of 8 bits do not serve this graph, where it was tried.
    pub(crate) i8_fault: Option<String>,
    /// The operators chosen for products by their speed, where that was measured.
    pub(crate) products: Vec<ProductChoice>,
}

/// The graph to open.
pub(crate) struct GraphSource<'a> {
    /// The graph's file; its weights lie beside it.
    pub(crate) path: &'a Path,
    /// An edited graph to open in the file's place.
    pub(crate) edited: Option<EditedSource<'a>>,
    pub(crate) config: &'a GenaiConfig,
}

/// An edited graph.
#[derive(Clone, Copy)]
pub(crate) struct EditedSource<'a> {
    pub(crate) graph: &'a [u8],
    /// The folder that the locations of its weights count from.
    pub(crate) weights_folder: &'a Path,
}

/// Opens a graph on one provider and validates it. Fails where nodes would run on the processor that may not.
pub(crate) fn open(
    library: &Library,
    source: &GraphSource<'_>,
    target: ExecutionTarget<'_>,
    cpu: CpuResources,
) -> Result<OpenGraph, OnnxError> {
    let fault = |error: ort::Error| {
        if target.provider != Provider::Cpu {
            return target.unavailable(format!("the model can't be opened on it: {}", one_line(error)));
        }
        OnnxError::Model {
            path: source.path.to_path_buf(),
            fault: format!(
                "ONNX Runtime refuses it: {}. Copy or export the model again",
                one_line(error)
            ),
        }
    };
    let session = match source.edited {
        None => {
            let mut builder = builder(library, target, cpu)?;
            custom_operators::commit(|| builder.commit_from_file(source.path))
        }
        Some(edited) => {
            let mut builder = builder_beside_weights(library, target, cpu, edited.weights_folder)?;
            custom_operators::commit(|| builder.commit_from_memory(edited.graph))
        }
    };
    let session = session.map_err(fault)?;
    let placement = match target.provider {
        Provider::Cpu => None,
        _ => Some(check_placement(&session, target)?),
    };
    let isa = cpu.isa.filter(|_| target.provider == Provider::Cpu);
    Ok(OpenGraph {
        isa,
        ..validate(session, library, placement, target.provider, source)?
    })
}

/// A session builder for graphs in memory whose weights lie in `folder`.
pub(crate) fn builder_beside_weights(
    library: &Library,
    target: ExecutionTarget<'_>,
    cpu: CpuResources,
    folder: &Path,
) -> Result<SessionBuilder, OnnxError> {
    Ok(builder(library, target, cpu)?.with_config_entry(
        "session.model_external_initializers_file_folder_path",
        folder.display().to_string(),
    )?)
}

/// A session builder.
pub(crate) fn builder(
    library: &Library,
    target: ExecutionTarget<'_>,
    cpu: CpuResources,
) -> Result<SessionBuilder, OnnxError> {
    let builder = Session::builder(library.environment())?
        .with_optimization_level(GraphOptimizationLevel::All)?
        .with_intra_threads(cpu.threads)?
        // The mask grows with every token: a memory pattern per shape would be kept for each of them.
        .with_memory_pattern(false)?;
    if target.provider != Provider::Cpu {
        let (entry, value) = RECORD_PLACEMENT;
        return target.register(library, builder.with_config_entry(entry, value)?);
    }
    let builder = target.register(library, builder)?;
    // The custom operators are registered, used or not.
    let builder = match cpu.isa {
        Some(isa) => builder.with_operators(custom_operators::domain(isa, cpu.threads)?)?,
        None => builder,
    };
    match cpu.paged {
        Some(paged) => Ok(builder.with_operators((paged.operators)()?)?),
        None => Ok(builder),
    }
}

/// The name of the input for positions. Exporters of different ages differ in whether they name this input where the
/// graph has none, and the other way round: the graph decides.
fn position_ids(inputs: &[Outlet], config: &GenaiConfig) -> Option<String> {
    let named = config.inputs.position_ids.as_deref().unwrap_or("position_ids");
    inputs
        .iter()
        .any(|input| input.name() == named)
        .then(|| named.to_owned())
}

/// Holds the session's inputs and outputs against `config`.
fn validate(
    session: Session,
    library: &Library,
    placement: Option<NodePlacement>,
    provider: Provider,
    source: &GraphSource<'_>,
) -> Result<OpenGraph, OnnxError> {
    let config = source.config;
    let fault = |fault: String| OnnxError::Model {
        path: source.path.to_path_buf(),
        fault,
    };
    let (inputs, outputs) = (session.inputs(), session.outputs());
    let position_ids = position_ids(inputs, config);
    validate_integers(inputs, config, position_ids.as_deref()).map_err(fault)?;
    let kv = if inputs.iter().any(|input| input.name() == KV_BLOCKS) {
        Some(GraphKv::Blocks)
    } else {
        let element = kv_element(inputs, outputs, config).map_err(fault)?;
        let is_paged = inputs.iter().any(|input| input.name() == BLOCK_TABLE);
        element.map(if is_paged {
            GraphKv::Paged
        } else {
            GraphKv::Tensors
        })
    };
    let logits = config.outputs.logits.as_str();
    let (ty, shape) = tensor(outputs, logits, "output").map_err(fault)?;
    let logits_element = float_element(logits, "output", ty).map_err(fault)?;
    let vocab_size = shape
        .last()
        .and_then(|size| usize::try_from(*size).ok())
        .filter(|size| *size > 0)
        .unwrap_or(config.vocab_size);
    let image_features = match &config.inputs.image_features {
        Some(name) => {
            let (ty, _) = tensor(inputs, name, "input").map_err(fault)?;
            Some(float_element(name, "input", ty).map_err(fault)?)
        }
        None => None,
    };
    Ok(OpenGraph {
        image_features,
        library: library.clone(),
        provider,
        placement,
        isa: None,
        kv: kv.ok_or_else(|| fault("genai_config.json says that it has no layers".into()))?,
        logits_element,
        vocab_size,
        chooses_logits: inputs
            .iter()
            .any(|input| input.name() == crate::prepare::LOGITS_ROWS),
        position_ids,
        session,
    })
}

/// The element type and shape of the tensor of this name.
fn tensor(outlets: &[Outlet], name: &str, kind: &str) -> Result<(TensorElementType, Vec<i64>), String> {
    match outlets
        .iter()
        .find(|outlet| outlet.name() == name)
        .map(Outlet::dtype)
    {
        Some(ValueType::Tensor { ty, shape, .. }) => Ok((*ty, shape.to_vec())),
        Some(_) => Err(format!("its {kind} \"{name}\" is no tensor")),
        None => Err(format!(
            "has no {kind} \"{name}\", which genai_config.json names: the two files are not of the same export"
        )),
    }
}

/// The element type of logits, keys or values. The custom operator for attention takes F32 alone
/// (`prepare/replace_attention.rs`).
fn float_element(name: &str, kind: &str, found: TensorElementType) -> Result<Element, String> {
    match found {
        TensorElementType::Float32 => Ok(Element::F32),
        TensorElementType::Float16 => Ok(Element::F16),
        other => Err(format!(
            "its {kind} \"{name}\" is {other}; fp32 and fp16 are supported"
        )),
    }
}

fn validate_integers(
    inputs: &[Outlet],
    config: &GenaiConfig,
    position_ids: Option<&str>,
) -> Result<(), String> {
    let mask = Some(config.inputs.attention_mask.as_str());
    let integers = [mask, config.inputs.input_ids.as_deref(), position_ids];
    for name in integers.into_iter().flatten() {
        let (element, _) = tensor(inputs, name, "input")?;
        if element != TensorElementType::Int64 {
            return Err(format!(
                "its input \"{name}\" is {element}, not int64: this form of export is not supported"
            ));
        }
    }
    Ok(())
}

/// The element type of keys and values, whose shapes must be those of `config`; `None` without layers.
fn kv_element(
    inputs: &[Outlet],
    outputs: &[Outlet],
    config: &GenaiConfig,
) -> Result<Option<Element>, String> {
    let mut kv_element = None;
    for layer in 0..config.num_layers {
        let pairs = [
            (config.past_key(layer), config.present_key(layer)),
            (config.past_value(layer), config.present_value(layer)),
        ];
        for (past, present) in pairs {
            let (ty, shape) = tensor(inputs, &past, "input")?;
            tensor(outputs, &present, "output")?;
            // -1 stands for a symbolic dimension: today's exporter leaves the head size open.
            let wanted = [(1, config.num_kv_heads), (3, config.head_size)];
            for (axis, size) in wanted {
                let found = shape.get(axis).copied().unwrap_or(0);
                if found != -1 && usize::try_from(found) != Ok(size) {
                    return Err(format!(
                        "its input \"{past}\" has shape {shape:?}, but genai_config.json says {} KV heads of size {}",
                        config.num_kv_heads, config.head_size
                    ));
                }
            }
            kv_element = Some(float_element(&past, "input", ty)?);
        }
    }
    Ok(kv_element)
}
