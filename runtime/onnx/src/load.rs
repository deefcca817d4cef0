//! Loading a model: its graph opened, its KV memory reserved.

use phi_edge_engine::Decoder;
use phi_edge_models::ModelDir;

use crate::decoder::{DecoderConfig, OnnxDecoder};
use crate::error::OnnxError;
use crate::library::Library;
use crate::open;
use crate::provider::Provider;
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
        let threads = config.threads.unwrap_or_else(available_threads);
        let opened = open::open(library, model, config, threads)?;
        let encoder = VisionEncoder::load(library, model, config, opened.graph.provider)?;
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
        tracing::info!(
            provider = decoder.provider().as_str(),
            prepared = decoder.prepared().as_str(),
            threads,
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
            provider,
            threads: config.threads.unwrap_or_else(available_threads),
            weights: config.vision_weights,
            edit_cache: config.edit_cache.as_deref(),
        })
    }
}

/// Processors this process may use (affinity and cgroup limits counted).
fn available_threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}
