//! Where ONNX Runtime places a session's nodes and inputs: on the provider, or on the processor.

use std::ffi::{CStr, c_char};
use std::ptr::null;

use ort::session::Session;
use ort::{AsPointer, sys};

use super::CPU_PROVIDER;
use super::target::ExecutionTarget;
use crate::error::OnnxError;
use crate::raw::status;

/// The entry of a session's configuration that has the library record where nodes run.
pub(crate) const RECORD_PLACEMENT: (&str, &str) = ("session.record_ep_graph_assignment_info", "1");

/// The nodes that may always run on the processor, by the beginnings of their names in exporters' graphs: they compute
/// lengths and positions from the attention mask, and ONNX Runtime itself prefers the processor for them.
const HOST_NODES: [&str; 3] = [
    "/model/attn_mask_reformat/*",
    "/model/rope_caches_subgraph/*",
    "/model/pos_ids_reformat/*",
];

/// The most nodes that an error names.
const MAX_NAMED: usize = 5;

/// A node of the graph.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GraphNode {
    /// The operator's type.
    pub operator: String,
    /// The node's name; empty where the exporter gave it none.
    pub name: String,
}

/// Where the nodes of a graph run: these on the processor, all others on the provider.
///
/// The provider's are not counted, since ONNX Runtime does not record all of them where it has a layout of its own (WebGPU).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NodePlacement {
    /// The nodes on the processor.
    pub on_cpu: Vec<GraphNode>,
}

impl std::fmt::Display for GraphNode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.operator, self.name)
    }
}

/// Where the nodes of `session` run, which was opened on `target` with [`RECORD_PLACEMENT`]. Fails where the processor runs
/// some that it may not: all but [`HOST_NODES`] and those that the settings allow.
pub(crate) fn check_placement(
    session: &Session,
    target: ExecutionTarget<'_>,
) -> Result<NodePlacement, OnnxError> {
    let refused = |fault: String, advice: &str| OnnxError::ProviderUnavailable {
        provider: target.provider.as_str(),
        fault,
        advice: advice.to_owned(),
    };
    let placement = read(session).map_err(|fault| {
        let fault = format!("the library does not say where nodes run: {fault}");
        refused(fault, "Take another version of ONNX Runtime's library")
    })?;
    match refusal(&placement, &target.settings.allow_cpu_nodes) {
        None => Ok(placement),
        Some(fault) => Err(refused(
            fault,
            "Export the model for this provider, set its options, or allow them by runtime.allow_cpu_nodes where their speed \
             does not matter",
        )),
    }
}

/// The name of the device that holds an input of `session`.
pub(crate) fn input_device(session: &Session, input: &str) -> Result<String, String> {
    let count = session.inputs().len();
    let index = session.inputs().iter().position(|outlet| outlet.name() == input);
    let index = index.ok_or_else(|| format!("the graph has no input \"{input}\""))?;
    let mut memory: Vec<*const sys::OrtMemoryInfo> = vec![null(); count];
    // SAFETY: the array has room for all inputs; what it gets lives as long as the session.
    status(unsafe {
        (ort::api().SessionGetMemoryInfoForInputs)(session.ptr(), memory.as_mut_ptr(), memory.len())
    })?;
    let info = memory.get(index).copied().filter(|info| !info.is_null());
    let info = info.ok_or("the library does not say where it is")?;
    let mut name = null();
    // SAFETY: the information lives as long as the session, and the name as long as it.
    unsafe {
        status((ort::api().MemoryInfoGetName)(info, &raw mut name))?;
        Ok(text(name))
    }
}

fn refusal(placement: &NodePlacement, allowed: &[String]) -> Option<String> {
    let host = HOST_NODES.iter().copied();
    let allowed: Vec<&str> = host.chain(allowed.iter().map(String::as_str)).collect();
    let refused: Vec<&GraphNode> = placement
        .on_cpu
        .iter()
        .filter(|node| !allowed.iter().any(|pattern| matches(pattern, node)))
        .collect();
    if refused.is_empty() {
        return None;
    }
    let mut named: Vec<String> = refused.iter().take(MAX_NAMED).map(ToString::to_string).collect();
    if refused.len() > MAX_NAMED {
        named.push(format!("{} more", refused.len() - MAX_NAMED));
    }
    Some(format!(
        "the processor would run nodes ({}): {}",
        refused.len(),
        named.join(", ")
    ))
}

/// Whether a pattern is the node's operator type, its name, or a beginning of its name that ends with `*`.
fn matches(pattern: &str, node: &GraphNode) -> bool {
    match pattern.strip_suffix('*') {
        Some(beginning) => node.name.starts_with(beginning),
        None => pattern == node.operator || pattern == node.name,
    }
}

fn read(session: &Session) -> Result<NodePlacement, String> {
    let api = ort::api();
    let mut placement = NodePlacement::default();
    let (mut subgraphs, mut count) = (null(), 0);
    // SAFETY: the pointers are valid for the call; what they get lives as long as the session.
    status(unsafe {
        (api.Session_GetEpGraphAssignmentInfo)(session.ptr(), &raw mut subgraphs, &raw mut count)
    })?;
    for subgraph in slice(subgraphs, count) {
        let (mut provider, mut nodes, mut count) = (null(), null(), 0);
        // SAFETY: as above.
        let provider = unsafe {
            status((api.EpAssignedSubgraph_GetEpName)(*subgraph, &raw mut provider))?;
            text(provider)
        };
        if provider != CPU_PROVIDER {
            continue;
        }
        // SAFETY: as above.
        status(unsafe { (api.EpAssignedSubgraph_GetNodes)(*subgraph, &raw mut nodes, &raw mut count) })?;
        for node in slice(nodes, count) {
            let (mut operator, mut name) = (null(), null());
            // SAFETY: as above.
            unsafe {
                status((api.EpAssignedNode_GetOperatorType)(*node, &raw mut operator))?;
                status((api.EpAssignedNode_GetName)(*node, &raw mut name))?;
                placement.on_cpu.push(GraphNode {
                    operator: text(operator),
                    name: text(name),
                });
            }
        }
    }
    Ok(placement)
}

/// An array of the library's that lives as long as its session.
fn slice<'a, T>(first: *const *const T, count: usize) -> &'a [*const T] {
    if first.is_null() || count == 0 {
        return &[];
    }
    // SAFETY: the callers pass arrays as the library gives them, with their lengths, while the session lives.
    unsafe { std::slice::from_raw_parts(first, count) }
}

/// A text of the library's.
///
/// # Safety
/// `text` must be null or end with a zero byte.
unsafe fn text(text: *const c_char) -> String {
    if text.is_null() {
        return String::new();
    }
    // SAFETY: as promised.
    unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(operator: &str, name: &str) -> GraphNode {
        GraphNode {
            operator: operator.to_owned(),
            name: name.to_owned(),
        }
    }

    #[test]
    fn nodes_on_the_processor_are_refused_unless_they_are_allowed_by_name() {
        let placement = NodePlacement {
            on_cpu: vec![
                node("Gather", "/model/attn_mask_reformat/attn_mask_subgraph/Gather"),
                node("Gather", "/model/embed_tokens/Gather"),
                node("MatMul", "/lm_head/MatMul"),
            ],
        };
        let refused = |allowed: &[&str]| {
            let allowed: Vec<String> = allowed.iter().map(ToString::to_string).collect();
            refusal(&placement, &allowed)
        };
        assert_eq!(
            refused(&[]).as_deref(),
            Some(
                "the processor would run nodes (2): Gather /model/embed_tokens/Gather, MatMul /lm_head/MatMul"
            )
        );
        assert_eq!(
            refused(&["Gather"]).as_deref(),
            Some("the processor would run nodes (1): MatMul /lm_head/MatMul")
        );
        assert_eq!(refused(&["/model/embed_tokens/Gather", "/lm_head/*"]), None);
        assert!(refused(&["/model/embed_tokens", "MatMul"]).is_some());
    }

    #[test]
    fn a_long_list_is_shortened() {
        let placement = NodePlacement {
            on_cpu: (0..9).map(|number| node("MatMul", &number.to_string())).collect(),
        };
        assert_eq!(
            refusal(&placement, &[]).unwrap(),
            "the processor would run nodes (9): MatMul 0, MatMul 1, MatMul 2, MatMul 3, MatMul 4, 4 more"
        );
    }
}
