//! Opening a model: the choice of the execution provider that runs it.

use std::path::Path;

use phi_edge_models::ModelDir;

use crate::decoder::DecoderConfig;
use crate::error::OnnxError;
use crate::graph;
use crate::graph_file::{MAX_EDITED_BYTES, folder_of, read_graph};
use crate::isa::CpuResources;
use crate::library::Library;
use crate::prepare::{self, LocatedGraph, MergeNames, Prepare, merge_embedding};
use crate::provider::{ExecutionTarget, Provider, ProviderReport, RefusedProvider};
use crate::provider_attempt::ProviderAttempt;
use crate::session::OpenModel;

/// Opens `model`'s decoder on the first provider that is available, and says why it is that one.
pub(crate) fn open(
    library: &Library,
    model: &ModelDir,
    config: &DecoderConfig,
    cpu: CpuResources,
) -> Result<(OpenModel, ProviderReport), OnnxError> {
    let path = model.decoder_path();
    // Read first: this error says best what is wrong with a damaged file.
    let facts = graph::read(&path)?;
    let merged = merged(model, &path)?;
    let graph = merged.clone().or_else(|| located(&path));
    let editable = graph.as_ref().filter(|_| config.prepare != Prepare::PLAIN);
    let mut refused = Vec::new();
    for provider in config.provider.candidates(&config.provider_settings) {
        let target = ExecutionTarget {
            provider,
            settings: &config.provider_settings,
        };
        let attempt = ProviderAttempt {
            library,
            path: &path,
            merged: merged.as_ref(),
            facts,
            genai: model.config(),
            config,
            target,
            cpu,
        };
        let opened = attempt
            .prove(graph.as_ref())
            .and_then(|proof| Ok((attempt.open(editable)?, proof)));
        match opened {
            Err(OnnxError::ProviderUnavailable { fault, .. }) if may_go_on(config, provider) => {
                log_refusal(config, provider, &fault);
                refused.push(RefusedProvider { provider, fault });
            }
            Err(error) => return Err(error),
            Ok((mut opened, proof)) => {
                let products = std::mem::take(&mut opened.products);
                let report = ProviderReport {
                    provider,
                    device: target.device(library),
                    reason: reason(config, provider),
                    proof,
                    refused,
                    products,
                    placement: opened.graph.placement.clone(),
                    identity: target.identity(),
                };
                return Ok((opened, report));
            }
        }
    }
    // Not reached: the last candidate is the processor, or the only one.
    Err(OnnxError::Runtime(
        "no execution provider is left to try".to_owned(),
    ))
}

/// Whether another candidate follows. The last one of `auto`, the processor, needs no registration, so what fails there is the
/// model's fault.
fn may_go_on(config: &DecoderConfig, provider: Provider) -> bool {
    provider != Provider::Cpu
        && (config.provider == Provider::Auto || config.provider_settings.fallback_to_cpu)
}

fn log_refusal(config: &DecoderConfig, provider: Provider, fault: &str) {
    let provider = provider.as_str();
    if config.provider == Provider::Auto {
        tracing::info!(provider, fault, "An execution provider can't be used here.");
    } else {
        tracing::warn!(
            provider,
            fault,
            "The execution provider can't be used here; the processor takes its place (runtime.fallback)."
        );
    }
}

/// Why `provider` runs the model.
fn reason(config: &DecoderConfig, provider: Provider) -> String {
    match config.provider {
        Provider::Auto if provider == Provider::Cpu => "no better one is available",
        Provider::Auto => "it is the best one that is available",
        asked if asked == provider => "it is the one that was asked for",
        _ => "it is the fallback",
    }
    .to_owned()
}

/// The graph in memory, unless it is very large. An unreadable file is reported when it is opened.
fn located(path: &Path) -> Option<LocatedGraph> {
    let size = std::fs::metadata(path).ok()?.len();
    if size > MAX_EDITED_BYTES {
        return None;
    }
    let bytes = std::fs::read(path).ok()?;
    Some(prepare::resolve_links(bytes.into(), folder_of(path)))
}

/// The decoder graph merged with the embedding graph, where the model has one. The weights of both lie in one folder.
fn merged(model: &ModelDir, path: &Path) -> Result<Option<LocatedGraph>, OnnxError> {
    let (Some(vision), Some(embedding_path)) = (&model.config().vision, model.embedding_path()) else {
        return Ok(None);
    };
    let inputs = &model.config().inputs;
    let (Some(ids), Some(features), Some(inputs_embeds)) =
        (&inputs.input_ids, &inputs.image_features, &inputs.inputs_embeds)
    else {
        return Ok(None);
    };
    let names = MergeNames {
        inputs: [ids, features],
        embeddings: &vision.embeddings,
        inputs_embeds,
    };
    let (decoder, embedding) = (read_graph(path)?, read_graph(&embedding_path)?);
    let merged = merge_embedding(&decoder, &embedding, &names).map_err(|fault| OnnxError::Model {
        path: path.to_path_buf(),
        fault,
    })?;
    Ok(Some(prepare::resolve_links(merged, folder_of(path))))
}
