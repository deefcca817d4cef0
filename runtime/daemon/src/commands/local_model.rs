//! A model that a command runs in its own process.

use std::time::{Duration, Instant};

use phi_edge_engine::{Decoder, Engine};
use phi_edge_models::ModelDir;
use phi_edge_onnx::OnnxDecoder;

use crate::exit::Fault;
use crate::setup::model::{ModelSetup, warn_of_demonstration};

/// A loaded model with its engine.
pub(crate) struct LocalModel<D: Decoder = OnnxDecoder> {
    pub(crate) model: ModelDir,
    pub(crate) engine: Engine<D>,
    pub(crate) load: Duration,
    epoch: Instant,
}

impl LocalModel {
    /// Loads the model of `setup`.
    pub(crate) fn load(setup: &ModelSetup) -> Result<Self, Fault> {
        Self::load_over(setup, |decoder| decoder)
    }
}

impl<D: Decoder> LocalModel<D> {
    /// Loads the model of `setup`, with its decoder wrapped by `wrap`.
    pub(crate) fn load_over(setup: &ModelSetup, wrap: impl FnOnce(OnnxDecoder) -> D) -> Result<Self, Fault> {
        let epoch = Instant::now();
        // The directory first: a wrong path is the commonest fault, and is found without the library.
        let model = ModelDir::open(&setup.model)?;
        warn_of_demonstration(&model);
        let engine = setup.engine_over(&model, wrap)?;
        Ok(Self {
            model,
            engine,
            load: epoch.elapsed(),
            epoch,
        })
    }

    /// Time since the load began.
    pub(crate) fn now(&self) -> Duration {
        self.epoch.elapsed()
    }

    /// The engine's clock, which does not borrow the engine.
    pub(crate) fn clock(&self) -> impl Fn() -> Duration + use<D> {
        let epoch = self.epoch;
        move || epoch.elapsed()
    }
}
