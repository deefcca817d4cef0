//! The attempt to open a model on one provider, and the edits of its graph.

use std::cell::OnceCell;
use std::path::Path;

use phi_edge_models::GenaiConfig;

use crate::attention;
use crate::decoder::DecoderConfig;
use crate::edit_cache::{EditCache, Tried, weights_identity};
use crate::error::OnnxError;
use crate::experts;
use crate::graph::{ExpertsForm, GraphFacts};
use crate::graph_file::{MAX_EDITED_BYTES, folder_of};
use crate::isa::{CpuResources, Isa, IsaChoice};
use crate::kv_cache::KvCache;
use crate::library::Library;
use crate::matmul;
use crate::prepare::{self, Level, LocatedGraph, Prepare, ProductShape};
use crate::processor::processor_name;
use crate::product_choice::ProductChoice;
use crate::provider::{ExecutionTarget, Provider};
use crate::provider_proof::run_one_node;
use crate::session::{self, EditedSource, GraphSource, OpenModel};
use crate::time_products::choose_operators;
use crate::verify_edits;

/// The attempt to open a model on one provider.
pub(crate) struct ProviderAttempt<'a> {
    pub(crate) library: &'a Library,
    pub(crate) path: &'a Path,
    /// The graph in the file's place.
    pub(crate) merged: Option<&'a LocatedGraph>,
    pub(crate) facts: GraphFacts,
    pub(crate) genai: &'a GenaiConfig,
    pub(crate) config: &'a DecoderConfig,
    pub(crate) target: ExecutionTarget<'a>,
    pub(crate) cpu: CpuResources,
}

/// Why the processor must not run a graph of this form.
const FUSED_EXPERTS: &str = "has experts (QMoE) in the form for CUDA, with use_sparse_mixer or a third matrix, for which the \
     processor gives wrong answers: convert the checkpoint for the processor (docs/models.md), or run it on a GPU \
     (runtime.provider = \"cuda\")";

impl ProviderAttempt<'_> {
    /// Proves that the provider computes, and computes right: one node, then the first layers of `graph`. Returns what that
    /// came to; `None` of the processor, which needs no proof.
    pub(crate) fn prove(&self, graph: Option<&LocatedGraph>) -> Result<Option<String>, OnnxError> {
        if self.target.provider == Provider::Cpu {
            return Ok(None);
        }
        run_one_node(self.library, self.target)?;
        let outcome = match graph {
            Some(located) => self.trial(located).run_on_provider(&located.graph)?,
            None => Err(format!(
                "the graph's file is larger than {} MiB",
                MAX_EDITED_BYTES >> 20
            )),
        };
        Ok(Some(match outcome {
            Ok(()) => "its results agree with the processor's".to_owned(),
            Err(fault) => format!("its results were not compared with the processor's: {fault}"),
        }))
    }

    /// Opens the model, with the edits of `editable` that hold. Fails where the provider is not available, or computes
    /// wrong.
    pub(crate) fn open(&self, editable: Option<&LocatedGraph>) -> Result<OpenModel, OnnxError> {
        if self.target.provider == Provider::Cpu && self.facts.experts == ExpertsForm::Fused {
            return Err(OnnxError::Model {
                path: self.path.to_path_buf(),
                fault: FUSED_EXPERTS.to_owned(),
            });
        }
        if let Some(editable) = editable {
            let processor = processor_name();
            // The config says which of the graph's inputs and outputs are used, and how.
            let config = format!("{:?}", self.genai);
            let weights = weights_identity(folder_of(self.path));
            let provider = self.target.identity();
            let circumstances = [
                weights.as_str(),
                self.library.description(),
                &provider,
                &processor,
                &config,
                matmul::REVISION,
                attention::REVISION,
                experts::REVISION,
                self.cpu.isa.map_or("none", Isa::as_str),
            ];
            let cache =
                EditCache::for_graph(&editable.graph, &circumstances, self.config.edit_cache.as_deref());
            let mut left_out = Vec::new();
            let products = OnceCell::new();
            let support = OperatorSupport {
                matmul: self.cpu.isa.is_some(),
                // It keeps keys and values on the host.
                attention: self.cpu.isa.is_some() && !self.config.device_rows,
                paged: self.cpu.paged.is_some(),
            };
            let possible =
                |edits: &Prepare| possible(*edits, self.config.prepare, self.target.provider, support);
            for edits in Prepare::ATTEMPTS.into_iter().filter(possible) {
                if let Some(edited) = self.edited(editable, edits, &cache, &products)? {
                    match edited {
                        Ok(mut opened) => {
                            if !edits.attention {
                                opened.attention_fault = self.attention_fault(Some(editable), &left_out);
                            }
                            opened.products = products.into_inner().unwrap_or_default();
                            warn(&left_out);
                            return Ok(opened);
                        }
                        Err(fault) => left_out.push((edits, fault)),
                    }
                }
            }
            let mut opened = self.plain()?;
            opened.attention_fault = self.attention_fault(Some(editable), &left_out);
            opened.products = products.into_inner().unwrap_or_default();
            // Logged only now: where the plain graph can't be opened either, its error is the one to report.
            warn(&left_out);
            return Ok(opened);
        }
        let mut opened = self.plain()?;
        opened.attention_fault = self.attention_fault(None, &[]);
        Ok(opened)
    }

    /// The reason why the graph is opened without the custom operator for attention; `left_out` are the edits that were
    /// tried and failed. `None`: the processor does not support the operator.
    fn attention_fault(
        &self,
        editable: Option<&LocatedGraph>,
        left_out: &[(Prepare, String)],
    ) -> Option<String> {
        let most = self.config.prepare;
        if !most.attention {
            return Some(format!("--prepare {most} leaves it out"));
        }
        let Some(editable) = editable else {
            let most = MAX_EDITED_BYTES >> 20;
            return Some(format!(
                "the graph's file is larger than {most} MiB, and is not edited"
            ));
        };
        // The last one was tried without the operator for matmuls.
        let tried = left_out.iter().rfind(|(edits, _)| edits.attention);
        tried.map_or_else(
            || prepare::attention_obstacle(&editable.graph),
            |(_, fault)| Some(fault.clone()),
        )
    }

    fn plain(&self) -> Result<OpenModel, OnnxError> {
        let merged = self.merged.map(|merged| EditedSource {
            graph: &merged.graph,
            weights_folder: &merged.weights_folder,
        });
        let graph = session::open(self.library, &self.source(merged), self.target, self.cpu)
            .map_err(|error| self.explain(error))?;
        Ok(OpenModel {
            graph,
            facts: self.facts,
            tables: None,
            prepared: Prepare::PLAIN,
            attention_fault: None,
            i8_fault: None,
            products: Vec::new(),
        })
    }

    /// The error of opening the plain graph, in place of it the missing file of its weights if one is: of links, the library
    /// says only that they lead out of the folder.
    fn explain(&self, error: OnnxError) -> OnnxError {
        let OnnxError::Model { .. } = error else {
            return error;
        };
        let is_small = std::fs::metadata(self.path).is_ok_and(|metadata| metadata.len() <= MAX_EDITED_BYTES);
        let graph = is_small.then(|| std::fs::read(self.path).ok()).flatten();
        let folder = self.path.parent().unwrap_or(Path::new("."));
        match graph.and_then(|graph| prepare::missing_weights(&graph, folder)) {
            Some(prepare::MissingWeights { path, fault }) => OnnxError::Model { path, fault },
            None => error,
        }
    }

    /// Opens the graph with these edits. The inner error says why they fail; `None` where they do not apply. `products` are the
    /// operators chosen by speed, once they are known.
    fn edited(
        &self,
        located: &LocatedGraph,
        edits: Prepare,
        cache: &EditCache,
        products: &OnceCell<Vec<ProductChoice>>,
    ) -> Result<Option<Result<OpenModel, String>>, OnnxError> {
        let prepare = |left_out: &[ProductShape]| {
            prepare::prepare_leaving(
                &located.graph,
                &self.genai.outputs.logits,
                edits,
                self.cpu.paged_domain(),
                left_out,
            )
        };
        let Some(mut prepared) = prepare(&[]) else {
            return Ok(None);
        };
        let verified = match cache.get(Tried::Edits(edits)) {
            Some(verified) => verified,
            None => match self.verify(located, edits)? {
                Some(verified) => {
                    cache.put(Tried::Edits(edits), &verified);
                    verified
                }
                // The model itself can't be opened: opening it without edits gives the best error.
                None => return Ok(None),
            },
        };
        if edits.matmul && verified.is_ok() && self.config.isa == IsaChoice::Auto {
            let choices =
                products.get_or_init(|| choose_operators(&self.trial(located), &located.graph, cache));
            let left_out: Vec<ProductShape> = choices
                .iter()
                .filter(|choice| choice.by_library)
                .map(|choice| choice.shape)
                .collect();
            if !left_out.is_empty() {
                // Without any product left the edits are those of another attempt.
                let Some(rest) = prepare(&left_out) else {
                    return Ok(None);
                };
                prepared = rest;
            }
        }
        let outcome = verified.and_then(|()| {
            session::open(
                self.library,
                &self.source(Some(EditedSource {
                    graph: &prepared.graph,
                    weights_folder: &located.weights_folder,
                })),
                self.target,
                self.cpu,
            )
            .map_err(|error| error.to_string())
        });
        let graph = match outcome {
            Ok(graph) => graph,
            Err(fault) => return Ok(Some(Err(fault))),
        };
        Ok(Some(Ok(OpenModel {
            graph,
            facts: self.facts,
            tables: prepared.tables,
            prepared: edits,
            attention_fault: None,
            i8_fault: self.i8_fault(located, edits, cache)?,
            products: Vec::new(),
        })))
    }

    /// Why keys and values of 8 bits do not serve the graph with these edits; `None` where they do, or are out of the
    /// question.
    fn i8_fault(
        &self,
        located: &LocatedGraph,
        edits: Prepare,
        cache: &EditCache,
    ) -> Result<Option<String>, OnnxError> {
        if !edits.attention || self.config.kv_cache == KvCache::F32 {
            return Ok(None);
        }
        // Who asks for 8 bits takes what they cost.
        let exactly = self.config.kv_cache == KvCache::Auto && self.facts.experts != ExpertsForm::None;
        let tried = Tried::KvI8 { edits, exactly };
        let outcome = if let Some(outcome) = cache.get(tried) {
            outcome
        } else {
            let outcome = self.trial(located).run_i8(&located.graph, edits, exactly)?;
            cache.put(tried, &outcome);
            outcome
        };
        Ok(outcome.err())
    }

    fn trial<'a>(&'a self, located: &'a LocatedGraph) -> verify_edits::Trial<'a> {
        verify_edits::Trial {
            library: self.library,
            path: self.path,
            weights_folder: &located.weights_folder,
            facts: self.facts,
            genai: self.genai,
            target: self.target,
            cpu: self.cpu,
        }
    }

    fn verify(
        &self,
        located: &LocatedGraph,
        edits: Prepare,
    ) -> Result<Option<Result<(), String>>, OnnxError> {
        match self.trial(located).run(&located.graph, edits) {
            Ok(verified) => Ok(Some(verified)),
            Err(error @ OnnxError::ProviderUnavailable { .. }) => Err(error),
            Err(error) => {
                tracing::debug!(%error, "An edit of the graph can't be tried.");
                Ok(None)
            }
        }
    }

    fn source<'a>(&'a self, edited: Option<EditedSource<'a>>) -> GraphSource<'a> {
        GraphSource {
            path: self.path,
            edited,
            config: self.genai,
        }
    }
}

fn warn(left_out: &[(Prepare, String)]) {
    for (edits, fault) in left_out {
        tracing::warn!(
            edit = edits.as_str(),
            fault,
            "An edit of the graph is left out: the model answers as it should, but slower."
        );
    }
}

/// Whether `edits` are to be tried: they are allowed by `most`, they help on this provider, and the processor
/// supports their custom operators.
fn possible(edits: Prepare, most: Prepare, provider: Provider, support: OperatorSupport) -> bool {
    let form = match edits.level {
        // The lengths of rows are an input of the processor's kernel alone.
        Level::Ragged => provider == Provider::Cpu,
        Level::Paged => provider == Provider::Cuda || (provider == Provider::Cpu && support.paged),
        Level::Plain | Level::Logits | Level::Rope => true,
    };
    let operator = |wanted: bool, runs: bool| !wanted || (provider == Provider::Cpu && runs);
    let operators = operator(edits.matmul || edits.experts, support.matmul)
        && operator(edits.attention, support.attention);
    form && operators && edits.within(most)
}

/// The custom operators that the processor supports.
#[derive(Debug, Clone, Copy)]
struct OperatorSupport {
    matmul: bool,
    attention: bool,
    paged: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn custom_operators_are_left_out_where_they_can_not_run() {
        let names = |most: &str, provider, available: [bool; 2]| {
            let [matmul, attention] = available;
            let support = OperatorSupport {
                matmul,
                attention,
                paged: false,
            };
            let most = most.parse().unwrap();
            let attempts = Prepare::ATTEMPTS.into_iter();
            let possible = attempts.filter(|edits| possible(*edits, most, provider, support));
            possible.map(Prepare::as_str).collect::<Vec<_>>().join(" ")
        };
        let check = |most, provider, available, expected: &str| {
            assert_eq!(names(most, provider, available), expected);
        };
        let (none, both) = ([false; 2], [true; 2]);
        let all = "ragged+matmul+attention";
        check(all, Provider::Cpu, none, "ragged rope logits");
        check(
            all,
            Provider::Cpu,
            [false, true],
            "ragged+attention ragged rope logits",
        );
        check(all, Provider::Cuda, both, "paged rope logits");
        check("rope", Provider::Cuda, both, "rope logits");
        check(all, Provider::WebGpu, both, "rope logits");
        check("ragged", Provider::Cpu, both, "ragged rope logits");
        check(
            "rope+matmul",
            Provider::Cpu,
            both,
            "rope+matmul rope logits+matmul logits matmul",
        );
        check("plain", Provider::Cpu, both, "");
    }
}
