//! Loading a model: its graph opened, its KV memory reserved.

use phi_edge_engine::Decoder;
use phi_edge_models::ModelDir;

use crate::decoder::{DecoderConfig, OnnxDecoder};
use crate::error::OnnxError;
use crate::isa::{CpuResources, Isa};
use crate::library::Library;
use crate::open;
use crate::provider::{ExecutionTarget, Provider, ProviderReport};
use crate::vision::{self, EncoderSource, VisionEncoder};

impl OnnxDecoder {
    /// Loads `model`'s decoder graph and reserves its KV memory.
    pub fn load(library: &Library, model: &ModelDir, config: &DecoderConfig) -> Result<Self, OnnxError> {
        Self::load_measuring(library, model, config, || None)
    }

    /// The same; where `config` does not bound the KV memory of the host, `free` does, asked once the weights are in memory.
    pub fn load_measuring(
        library: &Library,
        model: &ModelDir,
        config: &DecoderConfig,
        free: impl FnOnce() -> Option<u64>,
    ) -> Result<Self, OnnxError> {
        let cpu = cpu_resources(config)?;
        let (opened, report) = open::open(library, model, config, cpu)?;
        let encoder = load_encoder(library, model, config, report.provider)?;
        let mut config = config.clone();
        if config.kv_memory.is_none() && opened.graph.provider == Provider::Cpu {
            config.kv_memory = free();
        }
        let rope_boundary = opened.facts.rope_boundary;
        let mut decoder = Self::new(opened, &model.decoder_path(), model.config(), &config)?;
        if let Some(encoder) = &encoder {
            tracing::info!(
                cut = encoder.is_cut(),
                weights = encoder.weights().as_str(),
                loss = encoder.loss(),
                "The image encoder is loaded."
            );
        }
        decoder.set_encoder(encoder);
        log_provider(&report);
        decoder.set_provider_report(report);
        tracing::info!(
            provider = decoder.provider().as_str(),
            prepared = decoder.prepared().as_str(),
            isa = decoder.isa().map_or("none", Isa::as_str),
            threads = cpu.threads,
            context = decoder.caps().context_length,
            rope_boundary,
            kv = decoder.caps().kv_type.as_str(),
            library = %library.path().display(),
            "The model is loaded."
        );
        Ok(decoder)
    }
}

impl VisionEncoder {
    /// Loads `model`'s image encoder on the provider that runs its decoder; `None`: it has none.
    pub fn load(
        library: &Library,
        model: &ModelDir,
        config: &DecoderConfig,
        provider: Provider,
    ) -> Result<Option<Self>, OnnxError> {
        vision::open(&EncoderSource {
            library,
            model,
            target: ExecutionTarget {
                provider,
                settings: &config.provider_settings,
            },
            cpu: cpu_resources(config)?,
            weights: config.vision_weights,
            edit_cache: config.edit_cache.as_deref(),
        })
    }
}

/// Loads the image encoder on the provider of the decoder, else, where the decoder could have done so too, on the processor.
fn load_encoder(
    library: &Library,
    model: &ModelDir,
    config: &DecoderConfig,
    provider: Provider,
) -> Result<Option<VisionEncoder>, OnnxError> {
    let may_fall_back = config.provider == Provider::Auto || config.provider_settings.fallback_to_cpu;
    match VisionEncoder::load(library, model, config, provider) {
        Err(OnnxError::ProviderUnavailable { fault, .. }) if may_fall_back && provider != Provider::Cpu => {
            tracing::warn!(
                provider = provider.as_str(),
                fault,
                "The image encoder can't run where the decoder does; the processor runs it."
            );
            VisionEncoder::load(library, model, config, Provider::Cpu)
        }
        outcome => outcome,
    }
}

/// Logs which provider runs the model, why, and which nodes it runs.
fn log_provider(report: &ProviderReport) {
    let on_cpu = report.placement.as_ref().map(|placement| {
        let nodes: Vec<String> = placement.on_cpu.iter().map(ToString::to_string).collect();
        nodes.join(", ")
    });
    tracing::info!(
        provider = report.provider.as_str(),
        device = report.device,
        reason = report.reason,
        proof = report.proof,
        on_cpu,
        "The execution provider is chosen."
    );
    for choice in report.products.iter().filter(|choice| choice.by_library) {
        tracing::info!(
            shape = %choice.shape,
            times = choice.times,
            "ONNX Runtime computes products of this shape faster: the custom operator leaves them to it."
        );
    }
}

/// The threads and the instruction set that `config` asks for.
pub(crate) fn cpu_resources(config: &DecoderConfig) -> Result<CpuResources, OnnxError> {
    Ok(CpuResources {
        threads: config.threads.unwrap_or_else(available_threads),
        isa: config.isa.resolve()?,
        paged: config.paged_stand_in,
    })
}

/// Processors this process may use (affinity and cgroup limits counted).
fn available_threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}
