//! The load of the configuration from files, environment and flags.

use std::collections::BTreeMap;

use phi_edge_config::{
    ByteSize, Fallback, InstructionSet, KvCache as ConfigKvCache, LoadOptions, Loaded,
    Provider as ConfigProvider, Reloaded, RopePolicy as ConfigRopePolicy, Runtime,
    VisionWeights as ConfigVisionWeights,
};
use phi_edge_engine::RopePolicy;
use phi_edge_onnx::{Isa, IsaChoice, KvCache, PluginSettings, Provider, ProviderSettings, VisionWeights};

use crate::exit::{Exit, Fault};
use crate::machine::{folders, identity};
use crate::setup::args::ConfigArgs;

/// Loads the configuration of `args`, this process's environment and the system's folder.
pub(crate) fn load(args: &ConfigArgs) -> Result<Loaded, Fault> {
    phi_edge_config::load(&options(args)).map_err(|error| Fault::new(Exit::Config, error.to_string()))
}

/// Loads the configuration again, for a daemon that was started with `running`.
pub(crate) fn reload(args: &ConfigArgs, running: &Loaded) -> Result<Reloaded, Fault> {
    phi_edge_config::reload(&options(args), running)
        .map_err(|error| Fault::new(Exit::Config, error.to_string()))
}

fn options(args: &ConfigArgs) -> LoadOptions {
    LoadOptions {
        config: args.config.clone(),
        // Variables that are not UTF-8 are no configuration.
        env: std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .collect(),
        flags: args.set.clone(),
        system_dir: folders::configuration(),
        state_dir: folders::state(),
        hostname: identity::hostname(),
    }
}

/// Converts a provider of the configuration.
pub(crate) fn provider(provider: ConfigProvider) -> Provider {
    match provider {
        ConfigProvider::Auto => Provider::Auto,
        ConfigProvider::Cpu => Provider::Cpu,
        ConfigProvider::Cuda => Provider::Cuda,
        ConfigProvider::DirectMl => Provider::DirectMl,
        ConfigProvider::WebGpu => Provider::WebGpu,
        ConfigProvider::Plugin => Provider::Plugin,
    }
}

/// Converts the settings of the provider of the configuration.
pub(crate) fn provider_settings(runtime: &Runtime) -> ProviderSettings {
    ProviderSettings {
        device_id: runtime.device_id,
        device_memory: runtime.device_memory.map(ByteSize::bytes),
        // Of `auto` they would be those of whichever provider comes first.
        options: match runtime.provider {
            ConfigProvider::Auto => BTreeMap::new(),
            _ => runtime.provider_options.clone().unwrap_or_default(),
        },
        fallback_to_cpu: match runtime.fallback {
            Some(Fallback::Cpu) => true,
            None => false,
        },
        allow_cpu_nodes: runtime.allow_cpu_nodes.clone().unwrap_or_default(),
        plugin: runtime.plugin.library.as_ref().map(|library| PluginSettings {
            library: library.clone(),
            options: runtime.plugin.options.clone().unwrap_or_default(),
        }),
    }
}

/// Converts a type of keys and values of the configuration.
pub(crate) fn kv_cache(kv_cache: ConfigKvCache) -> KvCache {
    match kv_cache {
        ConfigKvCache::Auto => KvCache::Auto,
        ConfigKvCache::F32 => KvCache::F32,
        ConfigKvCache::I8 => KvCache::I8,
    }
}

/// Converts an instruction set of the configuration.
pub(crate) fn isa(isa: InstructionSet) -> IsaChoice {
    match isa {
        InstructionSet::Auto => IsaChoice::Auto,
        InstructionSet::Avx512Vnni => IsaChoice::Only(Isa::Avx512Vnni),
        InstructionSet::AvxVnni => IsaChoice::Only(Isa::AvxVnni),
        InstructionSet::Avx2 => IsaChoice::Only(Isa::Avx2),
        InstructionSet::NeonDot => IsaChoice::Only(Isa::NeonDot),
        InstructionSet::Neon => IsaChoice::Only(Isa::Neon),
        InstructionSet::Scalar => IsaChoice::Only(Isa::Scalar),
        InstructionSet::None => IsaChoice::None,
    }
}

/// Converts a form of the image encoder's weights of the configuration.
pub(crate) fn vision_weights(weights: ConfigVisionWeights) -> VisionWeights {
    match weights {
        ConfigVisionWeights::Auto => VisionWeights::Auto,
        ConfigVisionWeights::F32 => VisionWeights::F32,
        ConfigVisionWeights::Int8 => VisionWeights::Int8,
        ConfigVisionWeights::Int4 => VisionWeights::Int4,
    }
}

/// Converts a rope policy of the configuration.
pub(crate) fn rope_policy(policy: ConfigRopePolicy) -> RopePolicy {
    match policy {
        ConfigRopePolicy::Switch => RopePolicy::Switch,
        ConfigRopePolicy::Pin => RopePolicy::Pin,
    }
}
