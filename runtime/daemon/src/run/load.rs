//! The load of the model, during which the link is up already.

use phi_edge_config::{Config, TimeSpan};
use phi_edge_onnx::Isa;
use phi_edge_rules::Rule;
use phi_edge_service::{EngineHandle, StartError, spawn_engine};
use tokio::sync::oneshot;

use super::build::Built;
#[cfg(unix)]
use super::notify;
use super::served_model::ServedModel;
use super::signals::StopSignals;
use super::takeover;
use crate::exit::Fault;
use crate::machine::cores::ComputeCores;
use crate::setup::model::{self, ModelSetup};
use crate::setup::provider_lines;

/// The result of the load.
pub(super) enum LoadEnd {
    Loaded(Box<LoadedEngine>),
    Ended(EndWithoutModel),
}

/// The engine on its thread.
pub(super) struct LoadedEngine {
    pub(super) handle: EngineHandle,
    /// The provider that runs the model.
    pub(super) provider: &'static str,
    /// Why it is that one, for the status.
    pub(super) provider_reason: Option<String>,
    /// The instruction set of the custom operators, if the model's graph has such.
    pub(super) isa: Option<&'static str>,
    /// The cores that compute.
    pub(super) cores: ComputeCores,
}

/// The reason why the daemon ends before its model is loaded.
pub(super) enum EndWithoutModel {
    Failed(Fault),
    Stopped,
    TakenOver,
}

/// Loads the model, for a node with these rules, unless a signal or a takeover of the session comes first.
pub(super) async fn load(
    config: &Config,
    built: &mut Built<'_>,
    rules: &[Rule],
    signals: &mut StopSignals,
) -> LoadEnd {
    model::warn_of_demonstration(built.served.model());
    #[cfg(unix)]
    notify::send_status("the model is loading");
    tokio::select! {
        loaded = spawn(config, built.served.clone(), rules) => match loaded {
            Ok(engine) => LoadEnd::Loaded(Box::new(engine)),
            Err(fault) => LoadEnd::Ended(EndWithoutModel::Failed(fault)),
        },
        () = signals.next() => LoadEnd::Ended(EndWithoutModel::Stopped),
        () = takeover::taken_over(&mut built.link_state) => LoadEnd::Ended(EndWithoutModel::TakenOver),
    }
}

/// Loads the model on the engine's thread.
async fn spawn(config: &Config, served: ServedModel, rules: &[Rule]) -> Result<LoadedEngine, Fault> {
    let setup = ModelSetup::from_config(config, rules);
    let cores = setup.cores.clone();
    let (provider_tx, provider) = oneshot::channel();
    let mut provider_tx = Some(provider_tx);
    let unload_after = config.runtime.unload_after.map(TimeSpan::get);
    let path = served.model().path().display().to_string();
    tracing::info!(model = path, "loading the model");
    let handle = spawn_engine("engine", unload_after, move || {
        served.verify_unchanged()?;
        let engine = setup.engine(served.model());
        // Checked again: the folder may have been replaced during the load.
        served.verify_unchanged()?;
        let engine = engine?;
        if let Some(provider_tx) = provider_tx.take() {
            let decoder = engine.decoder();
            let report = decoder.provider_report();
            let _ = provider_tx.send((
                report.provider.as_str(),
                provider_lines::summary(report),
                decoder.isa().map(Isa::as_str),
            ));
        }
        Ok::<_, Fault>(engine)
    })
    .await
    .map_err(|error| match error {
        StartError::Build(fault) => fault,
        other => Fault::failed(other),
    })?;
    let (provider, provider_reason, isa) = match provider.await {
        Ok((provider, reason, isa)) => (provider, Some(reason), isa),
        Err(_) => ("unknown", None, None),
    };
    Ok(LoadedEngine {
        handle,
        provider,
        provider_reason,
        isa,
        cores,
    })
}
