//! Exit codes, in one place. Systemd does not restart on 77 and 78.

use std::process::ExitCode;

use phi_edge_models::{ModelError, PullError};
use phi_edge_mqtt::ClientError;
use phi_edge_onnx::OnnxError;

/// The exit code of the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exit {
    /// Failed at run time.
    Failed = 1,
    /// Wrong usage of the command line.
    Usage = 2,
    /// Library, provider or (for client commands) broker not there: `EX_UNAVAILABLE`.
    Unavailable = 69,
    /// Another client of the same id has the MQTT session.
    TakenOver = 77,
    /// Bad configuration or model directory: `EX_CONFIG`.
    Config = 78,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        ExitCode::from(exit as u8)
    }
}

/// A fault that ends the process: a message of one line, and the exit code.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub(crate) struct Fault {
    pub(crate) exit: Exit,
    pub(crate) message: String,
}

impl Fault {
    pub(crate) fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self {
            exit,
            message: message.into(),
        }
    }

    pub(crate) fn failed(message: impl std::fmt::Display) -> Self {
        Self::new(Exit::Failed, message.to_string())
    }
}

impl From<ModelError> for Fault {
    fn from(error: ModelError) -> Self {
        let exit = match &error {
            ModelError::Template(_) | ModelError::Encode(_) => Exit::Failed,
            _ => Exit::Config,
        };
        Self::new(exit, chain(&error))
    }
}

impl From<OnnxError> for Fault {
    fn from(error: OnnxError) -> Self {
        let exit = match &error {
            OnnxError::LibraryNotFound { .. }
            | OnnxError::LibraryUnusable { .. }
            | OnnxError::ProviderUnavailable { .. } => Exit::Unavailable,
            OnnxError::Model { .. }
            | OnnxError::PluginRefused { .. }
            | OnnxError::KvCacheUnavailable { .. }
            | OnnxError::IsaUnavailable { .. }
            | OnnxError::VisionWeightsUnavailable { .. }
            | OnnxError::KvMemory { .. } => Exit::Config,
            OnnxError::Runtime(_) => Exit::Failed,
        };
        Self::new(exit, chain(&error))
    }
}

impl From<PullError> for Fault {
    fn from(error: PullError) -> Self {
        let exit = match &error {
            PullError::Usage { .. } => Exit::Usage,
            PullError::GivenUp { .. } => Exit::Unavailable,
            PullError::Model(_) | PullError::Damaged { .. } | PullError::NoSuchModel { .. } => Exit::Config,
            _ => Exit::Failed,
        };
        Self::new(exit, chain(&error))
    }
}

impl From<ClientError> for Fault {
    fn from(error: ClientError) -> Self {
        let exit = match &error {
            ClientError::Tls(_) => Exit::Config,
            ClientError::Broker { .. } => Exit::Unavailable,
            ClientError::Send(_) => Exit::Failed,
        };
        Self::new(exit, error.to_string())
    }
}

/// An error with its sources, in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut line = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        line.push_str(": ");
        line.push_str(&error.to_string());
        source = error.source();
    }
    line
}
