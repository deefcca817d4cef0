//! The settings of the execution provider.

use std::collections::BTreeMap;
use std::path::PathBuf;

/// The settings of the execution provider, beside its name.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ProviderSettings {
    /// The device, counted from 0; `None`: the provider's own choice.
    pub device_id: Option<u32>,
    /// The most memory of the device for keys and values, in bytes; `None`: that of the host, else what the device has free.
    pub device_memory: Option<u64>,
    /// Options of a provider of the library (not of a plugin), passed on as they are. `auto` leaves them out.
    pub options: BTreeMap<String, String>,
    /// Whether the processor takes the place of an explicit provider that is not available.
    pub fallback_to_cpu: bool,
    /// Nodes that may run on the processor beside another provider: operator types, names, or beginnings of names that
    /// end with `*`.
    pub allow_cpu_nodes: Vec<String>,
    /// The plugin, if there is one.
    pub plugin: Option<PluginSettings>,
}

impl ProviderSettings {
    /// The settings of a provider that has none.
    pub(crate) const NONE: Self = Self {
        device_id: None,
        device_memory: None,
        options: BTreeMap::new(),
        fallback_to_cpu: false,
        allow_cpu_nodes: Vec::new(),
        plugin: None,
    };
}

/// A plugin: a library with an execution provider (ONNX Runtime's `RegisterExecutionProviderLibrary`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PluginSettings {
    /// The library: an absolute path. File and folders must belong to root, and no other user may write to them.
    pub library: PathBuf,
    /// Options, passed on as they are.
    pub options: BTreeMap<String, String>,
}
