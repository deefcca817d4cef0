//! A model on this machine.

use std::path::PathBuf;
use std::time::Instant;

use phi_edge_config::{ByteSize, Config};
use phi_edge_engine::{
    Decoder, Engine, EngineConfig, Input, Interrupt, Regime, Row, RowId, Step, TokenId, Wanted,
};
use phi_edge_models::ModelDir;
use phi_edge_onnx::{DecoderConfig, Library, OnnxDecoder, Prepare, Provider};
use phi_edge_service::rules::Rule;

use crate::exit::Fault;
use crate::setup::args::{ConfigArgs, ModelArgs};
use crate::setup::kv_budget;
use crate::setup::pinned_prefixes::{self, PrefixContext, PromptPrefix};
use crate::setup::settings;

/// Rows that only remember, beside those that run: sessions and templates of some thirty devices. They cost address space,
/// and memory only for what they hold.
const CACHE_ROWS: usize = 32;

/// The file that remembers which edits of a graph hold.
pub(crate) const EDIT_CACHE_FILE: &str = "graph-verdicts.json";

/// Which model, and how it is run.
#[derive(Debug, Clone)]
pub(crate) struct ModelSetup {
    pub(crate) model: PathBuf,
    pub(crate) library: Option<PathBuf>,
    pub(crate) decoder: DecoderConfig,
    pub(crate) engine: EngineConfig,
    /// Whether the model runs once before it serves.
    pub(crate) prewarm: bool,
    /// Beginnings of prompts to remember, and the folder of the store that keeps them.
    pub(crate) pinned: Option<(Vec<PromptPrefix>, PathBuf)>,
}

impl ModelSetup {
    /// What the configuration says, for a node with these rules.
    pub(crate) fn from_config(config: &Config, rules: &[Rule]) -> Self {
        let runtime = &config.runtime;
        let system_prompts = runtime.system_prompts.as_deref().unwrap_or_default();
        let (asked_for, pinned) = (
            system_prompts.len(),
            pinned_prefixes::prompt_prefixes(system_prompts, rules),
        );
        Self {
            model: config.model.path.clone(),
            library: runtime.library.clone(),
            decoder: DecoderConfig {
                provider: settings::provider(runtime.provider),
                threads: runtime.threads,
                rows: runtime.slots + asked_for,
                cache_rows: CACHE_ROWS + pinned.len() - asked_for,
                kv_memory: runtime.kv_memory.map(ByteSize::bytes),
                prepare: Prepare::ALL,
                verdicts: Some(config.store.path.join(EDIT_CACHE_FILE)),
            },
            engine: EngineConfig {
                prefill_chunk: runtime.prefill_chunk,
                slots: runtime.slots,
                kv_budget: runtime.kv_memory.map(ByteSize::bytes),
                prefix_cache: runtime.prefix_cache,
                speculation: runtime.speculation,
                ..EngineConfig::default()
            },
            prewarm: runtime.prewarm,
            pinned: Some((pinned, config.store.path.clone())),
        }
    }

    /// What flags say. Without `--model` the configuration names the model and whatever else flags don't.
    pub(crate) fn from_args(args: &ModelArgs, slots: usize, stop_repetition: bool) -> Result<Self, Fault> {
        let mut setup = match &args.model {
            Some(model) => Self {
                model: model.clone(),
                library: None,
                decoder: DecoderConfig {
                    provider: Provider::Auto,
                    threads: None,
                    rows: slots,
                    cache_rows: 0,
                    kv_memory: None,
                    prepare: Prepare::ALL,
                    verdicts: None,
                },
                engine: EngineConfig {
                    slots,
                    ..EngineConfig::default()
                },
                prewarm: false,
                pinned: None,
            },
            None => Self::from_config(&settings::load(&ConfigArgs::default())?.config, &[]),
        };
        setup.decoder.rows = slots;
        setup.decoder.cache_rows = 0;
        // The store is the service's own; whoever runs a command may not be allowed to write there.
        setup.decoder.verdicts = cache_folder().map(|folder| folder.join(EDIT_CACHE_FILE));
        setup.prewarm = false;
        setup.pinned = None;
        setup.engine.slots = slots;
        setup.engine.stop_repetition = stop_repetition;
        if let Some(provider) = args.provider {
            setup.decoder.provider = provider;
        }
        if let Some(threads) = args.threads {
            setup.decoder.threads = Some(threads.into());
        }
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

    /// Loads the graph of `model` and puts the engine around it.
    pub(crate) fn engine(&self, model: &ModelDir) -> Result<Engine<OnnxDecoder>, Fault> {
        self.engine_over(model, |decoder| decoder)
    }

    /// The same with what `wrap` makes of the decoder.
    pub(crate) fn engine_over<D: Decoder>(
        &self,
        model: &ModelDir,
        wrap: impl FnOnce(OnnxDecoder) -> D,
    ) -> Result<Engine<D>, Fault> {
        let library = Library::find(self.library.as_deref())?;
        if let Some(warning) = phi_edge_onnx::processor_warning() {
            tracing::warn!("{warning}");
        }
        let mut config = self.engine.clone();
        // On a device the slab is allocated whole: nothing to share out.
        let mut decoder = OnnxDecoder::load_measuring(&library, model, &self.decoder, || {
            if config.kv_budget.is_none() {
                config.kv_budget = kv_budget::kv_budget();
            }
            config.kv_budget
        })?;
        if self.prewarm {
            prewarm(&mut decoder);
        }
        let computed_by = decoder.computed_by(&library);
        let mut engine = Engine::new(wrap(decoder), config);
        if let Some((prefixes, store)) = self.pinned.as_ref().filter(|(prefixes, _)| !prefixes.is_empty()) {
            let place = PrefixContext {
                store,
                computed_by: &computed_by,
            };
            pinned_prefixes::pin(&mut engine, model, &model.text()?, prefixes, place)?;
        }
        Ok(engine)
    }
}

/// Runs a prompt and a token, as a first request would: memory is paid for, and the library has planned its buffers.
fn prewarm(decoder: &mut OnnxDecoder) {
    /// Any tokens do.
    const PROMPT: [TokenId; 16] = [TokenId(1); 16];
    let row = RowId(0);
    let part = |past, input| Row {
        row,
        past,
        input: Input::Tokens(input),
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
        Ok(()) => tracing::debug!(ms = begun.elapsed().as_secs_f64() * 1000.0, "the model is warm"),
        // What is wrong will be told by what is asked of it.
        Err(error) => {
            tracing::warn!(%error, "the model can't be tried before it is needed (runtime.prewarm)")
        }
    }
}

/// Where commands keep what spares them time: the user's cache folder.
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

/// Says that a model is only a demonstration, where it is one.
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
