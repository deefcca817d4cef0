//! The setup of a model: its decoder, its engine, and the prefixes that it keeps.

use std::path::{Path, PathBuf};
use std::time::Instant;

use phi_edge_config::{ByteSize, Config};
use phi_edge_engine::{
    Decoder, Engine, EngineConfig, Input, Interrupt, Regime, Row, RowId, Step, Symbol, TokenId, Wanted,
};
use phi_edge_models::ModelDir;
use phi_edge_onnx::{
    DecoderConfig, IsaChoice, KvCache, Library, OnnxDecoder, OnnxError, Prepare, Provider, ProviderSettings,
    VisionWeights,
};
use phi_edge_rules::Rule;

use crate::exit::{Exit, Fault};
use crate::machine::cores::ComputeCores;
use crate::machine::sysfs::{SYSFS, Sysfs};
use crate::setup::args::{ConfigArgs, ModelArgs};
use crate::setup::kv_budget;
use crate::setup::pinned_prefixes::{self, PrefixContext, PromptPrefix, UnkeptPrefix};
use crate::setup::settings;

/// The number of KV rows that only cache prefixes, beside those that run: enough for the sessions and templates of
/// some thirty devices. They cost address space, and memory only for the tokens that they hold.
const CACHE_ROWS: usize = 32;

/// The maximum number of parts of an image without a configuration: the default of `model.num_crops`.
const DEFAULT_NUM_CROPS: usize = 4;

/// The name of the file that caches which edits of a graph were verified.
pub(crate) const EDIT_CACHE_FILE: &str = "graph-edit_cache.json";

/// A model directory, and how the model in it is run.
#[derive(Debug, Clone)]
pub(crate) struct ModelSetup {
    pub(crate) model: PathBuf,
    pub(crate) library: Option<PathBuf>,
    pub(crate) decoder: DecoderConfig,
    /// The cores that the threads of `decoder` are counted by.
    pub(crate) cores: ComputeCores,
    /// The origin of the type of keys and values in `decoder`.
    pub(crate) kv_cache_origin: KvCacheOrigin,
    pub(crate) engine: EngineConfig,
    /// The maximum number of parts of an image of detail `auto`.
    pub(crate) num_crops: usize,
    /// Whether the model runs once before it serves requests.
    pub(crate) prewarm: bool,
    /// The prefixes to compute at the start, and the store's folder that keeps them.
    pub(crate) pinned: Option<(Vec<PromptPrefix>, PathBuf)>,
}

/// The origin of a requested type of keys and values, which advice about it names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum KvCacheOrigin {
    /// `runtime.kv_cache`.
    Configuration,
    /// `--kv-cache`.
    Flag,
    /// `bench --kv-loss`, which has no choice.
    KvLoss,
}

impl ModelSetup {
    /// The setup of the configuration, for a node with these rules.
    pub(crate) fn from_config(config: &Config, rules: &[Rule]) -> Self {
        let runtime = &config.runtime;
        let system_prompts = runtime.system_prompts.as_deref().unwrap_or_default();
        let (asked_for, pinned) = (
            system_prompts.len(),
            pinned_prefixes::prompt_prefixes(system_prompts, rules),
        );
        let cores = ComputeCores::detect(&Sysfs::at(&runtime.pace.sysfs), runtime.threads.count());
        Self {
            model: config.model.path.clone(),
            library: runtime.library.clone(),
            decoder: DecoderConfig {
                provider: settings::provider(runtime.provider),
                provider_settings: settings::provider_settings(runtime),
                threads: Some(cores.threads),
                rows: runtime.slots + asked_for,
                cache_rows: CACHE_ROWS + pinned.len() - asked_for,
                kv_cache: settings::kv_cache(runtime.kv_cache),
                isa: settings::isa(runtime.isa),
                kv_memory: runtime.kv_memory.map(ByteSize::bytes),
                prepare: Prepare::ALL_WITH_EXPERTS,
                edit_cache: Some(config.store.path.join(EDIT_CACHE_FILE)),
                vision_weights: settings::vision_weights(config.model.vision_weights),
                ..DecoderConfig::default()
            },
            cores,
            kv_cache_origin: KvCacheOrigin::Configuration,
            engine: EngineConfig {
                prefill_chunk: runtime.prefill_chunk,
                slots: runtime.slots,
                kv_budget: runtime.kv_memory.map(ByteSize::bytes),
                image_memory: runtime.image_memory.bytes(),
                prefix_cache: runtime.prefix_cache,
                speculation: runtime.speculation,
                rope_policy: settings::rope_policy(runtime.rope_policy),
                ..EngineConfig::default()
            },
            num_crops: config.model.num_crops,
            prewarm: runtime.prewarm,
            pinned: Some((pinned, config.store.path.clone())),
        }
    }

    /// The setup of a command's flags. Without `--model`, what the flags leave open is taken from the configuration.
    pub(crate) fn from_args(args: &ModelArgs, slots: usize, stop_repetition: bool) -> Result<Self, Fault> {
        let mut setup = match &args.model {
            Some(model) => Self {
                model: model.clone(),
                library: None,
                decoder: DecoderConfig {
                    provider: Provider::Auto,
                    provider_settings: ProviderSettings::default(),
                    rows: slots,
                    cache_rows: 0,
                    kv_cache: KvCache::Auto,
                    isa: IsaChoice::Auto,
                    kv_memory: None,
                    prepare: Prepare::ALL_WITH_EXPERTS,
                    edit_cache: None,
                    vision_weights: VisionWeights::Auto,
                    ..DecoderConfig::default()
                },
                cores: ComputeCores::detect(&Sysfs::at(Path::new(SYSFS)), None),
                kv_cache_origin: KvCacheOrigin::Configuration,
                engine: EngineConfig {
                    slots,
                    ..EngineConfig::default()
                },
                num_crops: DEFAULT_NUM_CROPS,
                prewarm: false,
                pinned: None,
            },
            None => Self::from_config(&settings::load(&ConfigArgs::default())?.config, &[]),
        };
        setup.decoder.rows = slots;
        setup.decoder.cache_rows = 0;
        // The user who runs a command may not be allowed to write to the store, which is the service's.
        setup.decoder.edit_cache = cache_folder().map(|folder| folder.join(EDIT_CACHE_FILE));
        setup.prewarm = false;
        setup.pinned = None;
        setup.engine.slots = slots;
        setup.engine.stop_repetition = stop_repetition;
        if let Some(provider) = args.provider {
            if provider != setup.decoder.provider {
                // They are those of the configured one.
                setup.decoder.provider_settings.options.clear();
            }
            setup.decoder.provider = provider;
        }
        if let Some(kv_cache) = args.kv_cache {
            setup.decoder.kv_cache = kv_cache;
            setup.kv_cache_origin = KvCacheOrigin::Flag;
        }
        if let Some(weights) = args.vision_weights {
            setup.decoder.vision_weights = weights;
        }
        if let Some(isa) = args.isa {
            setup.decoder.isa = isa;
        }
        if let Some(threads) = args.threads {
            setup.cores = ComputeCores::detect(&Sysfs::at(Path::new(SYSFS)), Some(threads.into()));
        }
        setup.decoder.threads = Some(setup.cores.threads);
        if let Some(prepare) = args.prepare {
            setup.decoder.prepare = prepare;
        }
        if args.library.is_some() {
            setup.library.clone_from(&args.library);
        }
        if let Some(chunk) = args.prefill_chunk {
            setup.engine.prefill_chunk = chunk as usize;
        }
        Ok(setup)
    }

    /// Loads the graph of `model` and builds the engine over it.
    pub(crate) fn engine(&self, model: &ModelDir) -> Result<Engine<OnnxDecoder>, Fault> {
        self.engine_over(model, |decoder| decoder)
    }

    /// As [`Self::engine`], over the decoder that `wrap` returns.
    pub(crate) fn engine_over<D: Decoder>(
        &self,
        model: &ModelDir,
        wrap: impl FnOnce(OnnxDecoder) -> D,
    ) -> Result<Engine<D>, Fault> {
        if let Some(warning) = self.kv_memory_warning() {
            tracing::warn!("{warning}");
        }
        let (mut engine, computed_by) = self.load_over(model, wrap)?;
        for prefix in self.pin(&mut engine, model, &computed_by)? {
            let UnkeptPrefix { of, tokens, failure } = prefix;
            tracing::warn!(of, tokens, error = %failure, "a prefix is not kept");
        }
        Ok(engine)
    }

    /// The warning about a configured memory for keys and values that this machine does not have.
    pub(crate) fn kv_memory_warning(&self) -> Option<String> {
        let configured = self.decoder.kv_memory?;
        let machine = kv_budget::machine_memory().filter(|machine| configured > *machine)?;
        let gib = |bytes: u64| bytes.div_ceil(1 << 30);
        Some(format!(
            "runtime.kv_memory is {} GiB, and this machine (or the unit) has {} GiB of memory: lower it, or leave it out",
            gib(configured),
            gib(machine)
        ))
    }

    /// Pins the configured prefixes in `engine`, which `computed_by` identifies. Returns those that are not kept.
    pub(crate) fn pin<D: Decoder>(
        &self,
        engine: &mut Engine<D>,
        model: &ModelDir,
        computed_by: &[String],
    ) -> Result<Vec<UnkeptPrefix>, Fault> {
        match &self.pinned {
            Some((prefixes, store)) if !prefixes.is_empty() => {
                let place = PrefixContext { store, computed_by };
                pinned_prefixes::pin(engine, model, &model.text()?, prefixes, place)
            }
            _ => Ok(Vec::new()),
        }
    }

    /// Loads the graph of `model`, and builds the engine without pinned prefixes over the decoder that `wrap` returns. The
    /// strings are what keys and values depend on ([`OnnxDecoder::computed_by`]).
    pub(crate) fn load_over<D: Decoder>(
        &self,
        model: &ModelDir,
        wrap: impl FnOnce(OnnxDecoder) -> D,
    ) -> Result<(Engine<D>, Vec<String>), Fault> {
        let library = Library::find(self.library.as_deref())?;
        if phi_edge_onnx::is_slow_processor() {
            tracing::warn!(
                "This processor has no AVX2: ONNX Runtime's kernels alone compute, several times slower than on one that has it."
            );
        }
        let cores = &self.cores;
        tracing::info!(
            threads = cores.threads,
            origin = cores.origin.as_str(),
            cpus = cores.cpus(),
            slower_cpus = cores.slower(),
            "The number of threads is chosen."
        );
        let mut config = self.engine.clone();
        let mut decoder = OnnxDecoder::load_measuring(&library, model, &self.decoder, || {
            if config.kv_budget.is_none() {
                config.kv_budget = kv_budget::kv_budget();
            }
            config.kv_budget
        })
        .map_err(|error| self.load_fault(error))?;
        if let Some(device) = decoder.device_budget() {
            config.kv_budget = Some(config.kv_budget.map_or(device, |budget| budget.min(device)));
        }
        if self.prewarm {
            prewarm(&mut decoder);
        }
        let computed_by = decoder.computed_by(&library);
        Ok((Engine::new(wrap(decoder), config), computed_by))
    }
}

impl ModelSetup {
    /// The fault of a failed load, whose advice names what the user has set.
    fn load_fault(&self, error: OnnxError) -> Fault {
        let OnnxError::KvCacheUnavailable { kv_cache, fault } = &error else {
            return error.into();
        };
        let limited = !self.decoder.prepare.attention;
        let message = match self.kv_cache_origin {
            KvCacheOrigin::Configuration => return error.into(),
            KvCacheOrigin::Flag if limited => format!(
                "--kv-cache {kv_cache} can't be served: {fault}. Leave out --prepare, or give --kv-cache auto or f32"
            ),
            KvCacheOrigin::Flag => {
                format!("--kv-cache {kv_cache} can't be served: {fault}. Give --kv-cache auto or f32")
            }
            KvCacheOrigin::KvLoss if limited => {
                format!("--kv-loss can't be served: {fault}. Leave out --prepare")
            }
            KvCacheOrigin::KvLoss => format!(
                "--kv-loss can't be served: {fault}. It compares 8-bit keys and values with 32-bit ones, and needs a model and a \
                 processor for both"
            ),
        };
        Fault::new(Exit::Config, message)
    }
}

/// Runs a prompt and a token, as a first request would, so that memory is allocated and the library has planned its
/// buffers.
fn prewarm(decoder: &mut OnnxDecoder) {
    /// A prompt of arbitrary tokens.
    const PROMPT: [Symbol; 16] = [Symbol::Token(TokenId(1)); 16];
    let row = RowId(0);
    let part = |past, input| Row {
        row,
        past,
        shared: &[],
        input: Input::of(input),
        logits: Wanted::Last,
        regime: Regime::Short,
    };
    let begun = Instant::now();
    let tokens = PROMPT.len() + 1;
    let warmed = decoder.ensure(row, tokens).and_then(|()| {
        for part in [part(0, &PROMPT), part(PROMPT.len(), &PROMPT[..1])] {
            decoder.run(&Step { rows: &[part] }, &Interrupt::new())?;
        }
        Ok(())
    });
    decoder.release(row);
    match warmed {
        Ok(()) => tracing::debug!(
            ms = begun.elapsed().as_secs_f64() * 1000.0,
            "the model is prewarmed"
        ),
        // The first request will report what is wrong.
        Err(error) => {
            tracing::warn!(%error, "the model can't be prewarmed (runtime.prewarm)")
        }
    }
}

/// The folder in which commands keep caches, below the user's cache folder.
pub(crate) fn cache_folder() -> Option<PathBuf> {
    let named = |variable: &str| {
        std::env::var_os(variable)
            .map(PathBuf::from)
            .filter(|path| path.is_absolute())
    };
    let folder = if cfg!(windows) {
        named("LOCALAPPDATA")
    } else {
        named("XDG_CACHE_HOME").or_else(|| Some(named("HOME")?.join(".cache")))
    };
    Some(folder?.join("phi-edge"))
}

/// Logs a warning if the model is only a demonstration.
pub(crate) fn warn_of_demonstration(model: &ModelDir) {
    let manifest = model.manifest();
    if manifest.demonstration {
        let note = manifest
            .note
            .as_deref()
            .unwrap_or("its answers are not to be relied on");
        tracing::warn!("{} is a demonstration: {note}", model.name());
    }
}
