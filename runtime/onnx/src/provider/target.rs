//! The target of sessions: a provider with its settings, registered with a session builder.

use std::fmt::Write as _;

use ort::ep::{self, ArbitrarilyConfigurableExecutionProvider, ExecutionProviderDispatch};
use ort::session::builder::SessionBuilder;

use super::advice::{advice, essence, with_missing_library};
use super::plugin::PluginDevice;
use super::settings::ProviderSettings;
use super::{Provider, plugin};
use crate::error::{OnnxError, one_line};
use crate::library::Library;

/// A provider with its settings: where sessions are opened.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ExecutionTarget<'a> {
    /// Never `auto`.
    pub(crate) provider: Provider,
    pub(crate) settings: &'a ProviderSettings,
}

impl<'a> ExecutionTarget<'a> {
    /// The processor.
    pub(crate) const CPU: ExecutionTarget<'static> = ExecutionTarget {
        provider: Provider::Cpu,
        settings: &ProviderSettings::NONE,
    };

    /// Registers the provider with `builder`. Fails where it is not available.
    pub(crate) fn register(
        self,
        library: &Library,
        builder: SessionBuilder,
    ) -> Result<SessionBuilder, OnnxError> {
        if !self.provider.compiled_in() {
            return Err(OnnxError::ProviderUnavailable {
                provider: self.provider.as_str(),
                fault: format!("{} is not built with this provider", library.path().display()),
                advice:
                    "Install an ONNX Runtime library that is, and name it by runtime.library (docs/gpu.md)"
                        .to_owned(),
            });
        }
        let registration = match self.provider {
            Provider::Auto | Provider::Cpu => return plugin::keep_on_processor(library, builder),
            Provider::Cuda => self.cuda(),
            Provider::DirectMl => self.direct_ml(),
            Provider::WebGpu => self.web_gpu()?,
            Provider::Plugin => {
                let device = self.plugin_device(library)?;
                return device.append_to(builder).map_err(|fault| self.unavailable(fault));
            }
        };
        builder
            .with_execution_providers([registration])
            .map_err(|error| self.unavailable(one_line(error)))
    }

    /// What runs, for people: the name of a plugin's provider, and its device. `None`: a provider of the library, which has
    /// no more than its name.
    pub(crate) fn device(self, library: &Library) -> Option<String> {
        match self.provider {
            Provider::Plugin => Some(self.plugin_device(library).ok()?.to_string()),
            _ => self.settings.device_id.map(|id| format!("device {id}")),
        }
    }

    /// What results depend on beside library and processor: the provider, its options, and a plugin's file.
    pub(crate) fn identity(self) -> String {
        let mut identity = self.provider.as_str().to_owned();
        if self.provider == Provider::Cpu {
            return identity;
        }
        let mut add = |name: &str, value: &dyn std::fmt::Debug| {
            // Writing to a string can't fail.
            let _ = write!(identity, " {name}={value:?}");
        };
        add("device", &self.settings.device_id);
        if self.provider != Provider::Plugin {
            add("options", &self.settings.options);
        } else if let Some(plugin) = &self.settings.plugin {
            let metadata = std::fs::metadata(&plugin.library).ok();
            add("library", &plugin.library);
            add("size", &metadata.as_ref().map(std::fs::Metadata::len));
            add(
                "modified",
                &metadata.and_then(|metadata| metadata.modified().ok()),
            );
            add("options", &plugin.options);
        }
        identity
    }

    /// The error of a provider that is not available, from what ONNX Runtime says about it.
    pub(crate) fn unavailable(self, fault: impl std::fmt::Display) -> OnnxError {
        let fault = with_missing_library(self.provider, essence(&one_line(fault)));
        let advice = advice(self.provider, &fault);
        OnnxError::ProviderUnavailable {
            provider: self.provider.as_str(),
            fault,
            advice,
        }
    }

    fn plugin_device<'b>(self, library: &'b Library) -> Result<PluginDevice<'b>, OnnxError>
    where
        'a: 'b,
    {
        let Some(settings) = &self.settings.plugin else {
            return Err(OnnxError::ProviderUnavailable {
                provider: self.provider.as_str(),
                fault: "runtime.plugin.library is not set".to_owned(),
                advice: "Name the provider's library there".to_owned(),
            });
        };
        plugin::device(library, settings, self.settings.device_id).map_err(|error| match error {
            plugin::PluginError::Refused(refused) => refused,
            plugin::PluginError::Unavailable(fault) => self.unavailable(fault),
        })
    }

    fn cuda(self) -> ExecutionProviderDispatch {
        let mut cuda = ep::CUDA::default();
        if let Some(id) = self.settings.device_id {
            cuda = cuda.with_arbitrary_config("device_id", id);
        }
        for (name, value) in &self.settings.options {
            cuda = cuda.with_arbitrary_config(name, value);
        }
        cuda.build().error_on_failure()
    }

    fn direct_ml(self) -> ExecutionProviderDispatch {
        let mut direct_ml = ep::DirectML::default();
        if let Some(id) = self.settings.device_id.and_then(|id| i32::try_from(id).ok()) {
            direct_ml = direct_ml.with_device_id(id);
        }
        direct_ml.build().error_on_failure()
    }

    fn web_gpu(self) -> Result<ExecutionProviderDispatch, OnnxError> {
        if self.settings.device_id.is_some_and(|id| id != 0) {
            // Its option "deviceId" names a context that a program has made, not a device of the machine.
            return Err(OnnxError::ProviderUnavailable {
                provider: self.provider.as_str(),
                fault: "it takes the system's first device, and no other by number".to_owned(),
                advice: "Leave out runtime.device_id, and choose the device by the Vulkan loader (VK_LOADER_DEVICE_SELECT)"
                    .to_owned(),
            });
        }
        let mut web_gpu = ep::WebGPU::default();
        for (name, value) in &self.settings.options {
            web_gpu = web_gpu.with_arbitrary_config(name, value);
        }
        Ok(web_gpu.build().error_on_failure())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::provider::PluginSettings;

    #[test]
    fn whatever_may_change_results_is_part_of_the_identity() {
        let plain = ProviderSettings::default();
        let cuda = |settings: &ProviderSettings| {
            ExecutionTarget {
                provider: Provider::Cuda,
                settings,
            }
            .identity()
        };
        let mut device = plain.clone();
        device.device_id = Some(1);
        let mut tf32 = plain.clone();
        tf32.options.insert("use_tf32".into(), "0".into());
        assert_ne!(cuda(&plain), cuda(&device));
        assert_ne!(cuda(&plain), cuda(&tf32));
        assert_eq!(ExecutionTarget::CPU.identity(), "cpu");
        let plugin = |options: &[(&str, &str)]| {
            let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
            let settings = ProviderSettings {
                plugin: Some(PluginSettings {
                    library: "/nowhere/ep.so".into(),
                    options: options.iter().map(owned).collect(),
                }),
                ..ProviderSettings::default()
            };
            ExecutionTarget {
                provider: Provider::Plugin,
                settings: &settings,
            }
            .identity()
        };
        assert_ne!(plugin(&[]), plugin(&[("precision", "FP16")]));
        assert!(plugin(&[]).contains("/nowhere/ep.so"), "{}", plugin(&[]));
    }
}
