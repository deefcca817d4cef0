//! A model on this machine, for the commands that need no broker.

use std::time::{Duration, Instant};

use phi_edge_engine::{Engine, EngineConfig};
use phi_edge_models::ModelDir;
use phi_edge_onnx::{DecoderConfig, Library, OnnxDecoder};

use crate::cli::ModelArgs;
use crate::exit::Fault;

/// A loaded model.
pub(crate) struct Local {
    pub(crate) model: ModelDir,
    pub(crate) engine: Engine<OnnxDecoder>,
    pub(crate) load: Duration,
    epoch: Instant,
}

impl Local {
    /// Loads the model that `args` names, with room for `slots` streams at once.
    pub(crate) fn load(args: &ModelArgs, slots: usize, stop_repetition: bool) -> Result<Self, Fault> {
        let epoch = Instant::now();
        // The directory first: a wrong path is the commonest fault, and needs no library to be told.
        let model = ModelDir::open(&args.model)?;
        let library = Library::find(args.library.as_deref())?;
        if let Some(warning) = phi_edge_onnx::processor_warning() {
            tracing::warn!("{warning}");
        }
        let config = DecoderConfig {
            provider: args.provider,
            threads: args.threads.map(usize::from),
            rows: slots,
            kv_memory: None,
        };
        let decoder = OnnxDecoder::load(&library, &model, &config)?;
        let config = EngineConfig {
            prefill_chunk: args.prefill_chunk as usize,
            slots,
            stop_repetition,
        };
        Ok(Self {
            model,
            engine: Engine::new(decoder, config),
            load: epoch.elapsed(),
            epoch,
        })
    }

    /// Time since the load began.
    pub(crate) fn now(&self) -> Duration {
        self.epoch.elapsed()
    }

    /// The engine's clock, free of a borrow of the engine.
    pub(crate) fn clock(&self) -> impl Fn() -> Duration + use<> {
        let epoch = self.epoch;
        move || epoch.elapsed()
    }
}
