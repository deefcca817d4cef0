//! The status of a node.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::json::to_json;

/// The state of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// The model is being loaded; requests wait.
    Starting,
    /// Requests are answered.
    Ready,
    /// Something is wrong; `reason` says what.
    Degraded,
    /// The node ends: running jobs may finish.
    Draining,
    /// The node is not connected.
    Offline,
}

impl State {
    /// All states, in the order in which a node passes them.
    pub const ALL: [Self; 5] = [
        Self::Starting,
        Self::Ready,
        Self::Degraded,
        Self::Draining,
        Self::Offline,
    ];

    /// Returns the state's spelling on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Ready => "ready",
            Self::Degraded => "degraded",
            Self::Draining => "draining",
            Self::Offline => "offline",
        }
    }
}

/// The status of a node, as it is published and kept for later readers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// The state.
    pub state: State,
    /// The reason of the state, where there is one to tell.
    pub reason: Option<String>,
    /// The id of this start of the daemon.
    pub boot_id: String,
    /// The daemon's version.
    pub version: String,
    /// The model's name.
    pub model: Option<String>,
    /// The context length: tokens of prompt and answer together.
    pub context: Option<usize>,
    /// The execution provider: `cpu`, `cuda`, `directml`, `webgpu` or `plugin`.
    pub provider: Option<String>,
    /// Why it is that one, and how many nodes of the graph run on the processor beside it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub provider_reason: Option<String>,
    /// The instruction set of the kernels on the processor; none where ONNX Runtime's kernels alone compute.
    pub isa: Option<String>,
    /// The threads that compute a step.
    pub threads: Option<usize>,
    /// The CPUs that the threads are counted by, such as `4-7`; none where the system does not tell.
    pub cpus: Option<String>,
    /// The optional features that requests may use.
    pub features: Vec<String>,
    /// The limits on requests.
    pub limits: Value,
}

impl Status {
    /// Creates the status of a node of which only the state and the start are known.
    pub fn new(state: State, boot_id: impl Into<String>) -> Self {
        Self {
            state,
            reason: None,
            boot_id: boot_id.into(),
            version: String::new(),
            model: None,
            context: None,
            provider: None,
            provider_reason: None,
            isa: None,
            threads: None,
            cpus: None,
            features: Vec::new(),
            limits: Value::Null,
        }
    }

    /// Returns the payload.
    pub fn encode(&self) -> Vec<u8> {
        to_json(self)
    }

    /// Returns the same status with another state and reason.
    #[must_use]
    pub fn with(&self, state: State, reason: Option<String>) -> Self {
        Self {
            state,
            reason,
            ..self.clone()
        }
    }
}
