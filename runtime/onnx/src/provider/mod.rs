//! Execution providers: where the graph runs.

mod advice;
mod cuda_driver;
mod library_file;
mod placement;
mod plugin;
mod report;
mod settings;
mod system_library;
mod target;

pub(crate) use cuda_driver::{CardMemory, card_memory};
pub(crate) use placement::check_placement;
pub use placement::{GraphNode, NodePlacement};
pub(crate) use placement::{RECORD_PLACEMENT, input_device};
pub use report::{ProviderReport, RefusedProvider};
pub use settings::{PluginSettings, ProviderSettings};
pub(crate) use target::ExecutionTarget;

use ort::ep::{self, ExecutionProvider};

/// ONNX Runtime's name of the provider for the processor.
const CPU_PROVIDER: &str = "CPUExecutionProvider";

/// An execution provider, as configured or as it runs.
///
/// A new one also takes a feature of `ort` in the workspace's Cargo.toml, its registration (`target.rs`), the device of its
/// KV memory (`decoder/reserve.rs`), its name in the configuration, a row of docs/gpu.md, and for `phi-edge pull` the names of
/// its folders (`Accelerator` of phi-edge-models).
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
    /// GPUs by WebGPU, over Vulkan or Direct3D 12.
    WebGpu,
    /// The provider in a plugin library ([`PluginSettings`]).
    Plugin,
}

impl Provider {
    /// The spelling in the configuration, the log and the status.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Cpu => "cpu",
            Self::Cuda => "cuda",
            Self::DirectMl => "directml",
            Self::WebGpu => "webgpu",
            Self::Plugin => "plugin",
        }
    }

    /// The providers to try, in order. Only `auto` and a fallback that was asked for end with the processor.
    pub(crate) fn candidates(self, settings: &ProviderSettings) -> Vec<Self> {
        match self {
            Self::Auto => [Self::Plugin, Self::Cuda, Self::DirectMl, Self::WebGpu]
                .into_iter()
                .filter(|provider| match provider {
                    Self::Plugin => settings.plugin.is_some(),
                    built_in => built_in.compiled_in(),
                })
                .chain([Self::Cpu])
                .collect(),
            Self::Cpu => vec![Self::Cpu],
            explicit if settings.fallback_to_cpu => vec![explicit, Self::Cpu],
            explicit => vec![explicit],
        }
    }

    /// Whether the library was built with this provider. Says nothing about the machine, nor about plugins.
    fn compiled_in(self) -> bool {
        let available = match self {
            Self::Auto | Self::Cpu | Self::Plugin => return true,
            Self::Cuda => ep::CUDA::is_available(),
            Self::DirectMl => ep::DirectML::is_available(),
            Self::WebGpu => ep::WebGPU::is_available(),
        };
        available.unwrap_or(false)
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
        let all = [
            Self::Auto,
            Self::Cpu,
            Self::Cuda,
            Self::DirectMl,
            Self::WebGpu,
            Self::Plugin,
        ];
        all.into_iter()
            .find(|provider| provider.as_str() == text)
            .ok_or_else(|| {
                format!("unknown provider \"{text}\": use auto, cpu, cuda, directml, webgpu or plugin")
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_processor_is_a_candidate_of_auto_and_where_it_is_asked_for() {
        let none = ProviderSettings::default();
        let fallback = ProviderSettings {
            fallback_to_cpu: true,
            ..ProviderSettings::default()
        };
        assert_eq!(Provider::Cuda.candidates(&none), [Provider::Cuda]);
        assert_eq!(
            Provider::Cuda.candidates(&fallback),
            [Provider::Cuda, Provider::Cpu]
        );
        assert_eq!(Provider::Cpu.candidates(&fallback), [Provider::Cpu]);
    }

    #[test]
    fn every_name_is_read_as_it_is_written() {
        for name in ["auto", "cpu", "cuda", "directml", "webgpu", "plugin"] {
            assert_eq!(name.parse::<Provider>().unwrap().as_str(), name);
        }
        assert!("gpu".parse::<Provider>().unwrap_err().contains("webgpu"));
    }
}
