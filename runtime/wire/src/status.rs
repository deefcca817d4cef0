//! The retained status of a node; also its will.

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// How the node is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// The model loads; requests wait.
    Starting,
    /// Requests are answered.
    Ready,
    /// Something is wrong; `reason` says what.
    Degraded,
    /// It ends: what runs may finish.
    Draining,
    /// It is gone.
    Offline,
}

impl State {
    /// All of them, in the order of a life.
    pub const ALL: [Self; 5] = [
        Self::Starting,
        Self::Ready,
        Self::Degraded,
        Self::Draining,
        Self::Offline,
    ];

    /// The state's word.
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

/// The payload of `{base}/status`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// How the node is.
    pub state: State,
    /// Why, where that is not plain.
    pub reason: Option<String>,
    /// Tells one start of the daemon from another.
    pub boot_id: String,
    /// The daemon's version.
    pub version: String,
    /// The model's name.
    pub model: Option<String>,
    /// Tokens of prompt and answer together.
    pub context: Option<usize>,
    /// What computes: `cpu`, `cuda` or `directml`.
    pub provider: Option<String>,
    /// What requests may use beyond the basics.
    pub features: Vec<String>,
    /// Bounds that requests are held to.
    pub limits: Value,
}

impl Status {
    /// A node in this state, of which nothing more is known.
    pub fn new(state: State, boot_id: impl Into<String>) -> Self {
        Self {
            state,
            reason: None,
            boot_id: boot_id.into(),
            version: String::new(),
            model: None,
            context: None,
            provider: None,
            features: Vec::new(),
            limits: Value::Null,
        }
    }

    /// The payload.
    pub fn encode(&self) -> Vec<u8> {
        crate::to_bytes(self)
    }

    /// The same node in another state.
    #[must_use]
    pub fn with(&self, state: State, reason: Option<String>) -> Self {
        Self {
            state,
            reason,
            ..self.clone()
        }
    }
}
