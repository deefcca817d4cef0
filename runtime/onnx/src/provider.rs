//! Execution providers: where the graph runs.

use ort::ep::{self, ExecutionProvider, ExecutionProviderDispatch};

use crate::error::{OnnxError, one_line};

/// An execution provider, as configured or as it runs.
///
/// A new one also takes a feature of `ort` in the workspace's Cargo.toml, the device of its KV memory
/// (`decoder/reserve.rs`), its name in the configuration, and for `phi-edge pull` the names of its folders
/// (`Accelerator` of phi-edge-models).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Provider {
    /// The best that is available.
    #[default]
    Auto,
    /// The processor.
    Cpu,
    /// NVIDIA GPUs.
    Cuda,
    /// DirectX 12 GPUs (Windows).
    DirectMl,
}

impl Provider {
    /// The spelling in the configuration, the log and the status.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Cpu => "cpu",
            Self::Cuda => "cuda",
            Self::DirectMl => "directml",
        }
    }

    /// The providers to try, in order. Only `auto` falls back to the processor.
    pub(crate) fn candidates(self) -> Vec<Self> {
        match self {
            Self::Auto => [Self::Cuda, Self::DirectMl]
                .into_iter()
                .filter(|provider| provider.compiled_in())
                .chain([Self::Cpu])
                .collect(),
            explicit => vec![explicit],
        }
    }

    /// The registration, which fails where the provider is not available; the processor needs none.
    pub(crate) fn registration(self) -> Option<ExecutionProviderDispatch> {
        match self {
            Self::Auto | Self::Cpu => None,
            Self::Cuda => Some(ep::CUDA::default().build().error_on_failure()),
            Self::DirectMl => Some(ep::DirectML::default().build().error_on_failure()),
        }
    }

    /// Whether the library was built with this provider. Says nothing about the machine.
    fn compiled_in(self) -> bool {
        match self {
            Self::Auto | Self::Cpu => true,
            Self::Cuda => ep::CUDA::is_available().unwrap_or(false),
            Self::DirectMl => ep::DirectML::is_available().unwrap_or(false),
        }
    }

    pub(crate) fn unavailable(self, fault: impl std::fmt::Display) -> OnnxError {
        OnnxError::ProviderUnavailable {
            provider: self.as_str(),
            fault: one_line(fault),
        }
    }
}

impl std::fmt::Display for Provider {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

impl std::str::FromStr for Provider {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            "cuda" => Ok(Self::Cuda),
            "directml" => Ok(Self::DirectMl),
            other => Err(format!(
                "unknown provider \"{other}\": use auto, cpu, cuda or directml"
            )),
        }
    }
}
