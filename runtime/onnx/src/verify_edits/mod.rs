//! Verification of edits: an edited graph must give the results of the plain one, tried on its first layers.

mod compare_experts;
mod compare_matmuls;
mod compare_providers;
pub(crate) mod reference;
mod trial_steps;

use std::path::Path;

use phi_edge_models::GenaiConfig;
use prost::bytes::Bytes;

use crate::decoder::{DecoderConfig, OnnxDecoder};
use crate::error::OnnxError;
use crate::graph::{ExpertsForm, GraphFacts};
use crate::isa::{CpuResources, IsaChoice};
use crate::kv_cache::KvCache;
use crate::library::Library;
use crate::logit_difference::LogitDifference;
use crate::prepare::{self, EditedGraph, Level, Prepare, RopeTables};
use crate::provider::{ExecutionTarget, Provider};
use crate::session::{self, EditedSource, GraphSource, OpenModel};
use crate::verify_edits::reference::reference;
use crate::vision::VisionWeights;
use trial_steps::steps;

/// The number of layers of the trial: the second one reads what the edits made of the first.
const TRIAL_LAYERS: usize = 2;
/// The tokens that a row of the trial may hold beyond the boundary of the rope factors.
const TOKENS_BEYOND_BOUNDARY: usize = 32;
/// The largest accepted difference of a logit, as a share of the largest logit. Seen: none at all for small models of
/// fp32 and int4, 7e-4 at full size, 3e-4 for fp16; the table of the other regime makes 16e-3 and more.
const LOGIT_TOLERANCE: f32 = 5e-3;

/// The same where matmuls are computed by the custom operator. Each result equals the library's
/// ([`compare_matmuls`]), but for the last bits; these decide now and then how the next matmul rounds an input to
/// eight bits, so that after a few matmuls two equally good results differ by as much as rounding to eight bits
/// costs. Seen: 12e-3 at full size.
const MATMUL_LOGIT_TOLERANCE: f32 = 5e-2;

/// The same for 8-bit keys and values: some tokens of little context, in which a single key weighs much. Seen: 13e-3.
const I8_LOGIT_TOLERANCE: f32 = 5e-2;

/// The same between a device and the processor, whose kernels round at other places. The edit itself has then been verified on the
/// processor. Seen: 16e-3 for int4.
const DEVICE_LOGIT_TOLERANCE: f32 = 5e-2;

/// The least share of tokens whose logits must agree where experts are chosen. Seen: 0.9; a wrong edit leaves none.
const LEAST_AGREEING: f64 = 0.5;

const INSEPARABLE_LAYERS: &str = "its layers can't be told apart, so that it can't be tried";

/// A trial of edits on one provider.
pub(crate) struct Trial<'a> {
    pub(crate) library: &'a Library,
    pub(crate) path: &'a Path,
    /// The folder that the locations of the weights of graphs in memory count from.
    pub(crate) weights_folder: &'a Path,
    pub(crate) facts: GraphFacts,
    pub(crate) genai: &'a GenaiConfig,
    pub(crate) target: ExecutionTarget<'a>,
    pub(crate) cpu: CpuResources,
}

impl Trial<'_> {
    /// Runs the same steps on the plain graph and on the edited one. The inner result is the outcome; the outer one
    /// fails where the plain graph can't be run either.
    pub(crate) fn run(&self, model: &Bytes, edits: Prepare) -> Result<Result<(), String>, OnnxError> {
        if self.target.provider != Provider::Cpu {
            return self.run_on_device(model, edits);
        }
        let Some((cut, genai)) = self.cut(model)? else {
            return Ok(Err(INSEPARABLE_LAYERS.into()));
        };
        let exact = reference(&cut);
        let expected =
            steps(&mut self.plain(&exact, &genai)?).map_err(|error| OnnxError::Runtime(error.to_string()))?;
        let form = Prepare::form(edits.level);
        if form != Prepare::PLAIN
            && let Err(fault) = self.verify(&exact, form, &expected, &genai)
        {
            return Ok(Err(fault));
        }
        if edits.attention {
            let attention = Prepare {
                matmul: false,
                experts: false,
                ..edits
            };
            if let Err(fault) = self.verify(&exact, attention, &expected, &genai) {
                return Ok(Err(fault));
            }
        }
        if !edits.matmul && !edits.experts {
            return Ok(Ok(()));
        }
        let mut operators = Ok(());
        if edits.matmul {
            operators = compare_matmuls::verify(self, model);
        }
        if edits.experts {
            operators = operators.and_then(|()| compare_experts::verify(self, model));
        }
        Ok(operators.and_then(|()| self.verify(&cut, edits, &expected, &genai)))
    }

    /// The same on a device, whose kernels may be wrong for the plain graph as well: the edits are verified on the processor, and
    /// its results with the device's.
    fn run_on_device(&self, model: &Bytes, edits: Prepare) -> Result<Result<(), String>, OnnxError> {
        if self.facts.experts == ExpertsForm::Fused {
            return Ok(Err(
                "the processor, on which edits are tried, computes experts of this form wrong".to_owned(),
            ));
        }
        let processor = Trial {
            target: ExecutionTarget::CPU,
            ..*self
        };
        // The processor has no kernel for paged attention: its plain graph says what is right.
        let is_paged = edits.level == Level::Paged;
        if !is_paged && let Err(fault) = processor.run(model, edits)? {
            return Ok(Err(fault));
        }
        let Some((cut, genai)) = self.cut(model)? else {
            return Ok(Err(INSEPARABLE_LAYERS.into()));
        };
        let run = |trial: &Trial<'_>| match prepare::prepare(
            &cut,
            &genai.outputs.logits,
            edits,
            self.cpu.paged_domain(),
        ) {
            Some(prepared) => trial.logits(prepared, edits, KvCache::F32, &genai),
            None => Err("its first layers are of another form than the whole".to_owned()),
        };
        let expected = if is_paged {
            let said = |error: OnnxError| error.to_string();
            let plain = processor.plain(&cut, &genai).map_err(said);
            plain.and_then(|mut plain| steps(&mut plain).map_err(|error| error.to_string()))
        } else {
            run(&processor)
        };
        Ok(expected.and_then(|expected| {
            let got = run(self)?;
            self.equal(&got, &expected, DEVICE_LOGIT_TOLERANCE, LEAST_AGREEING)
                .map_err(|fault| format!("{fault} those on the processor"))
        }))
    }

    /// The same of 8-bit keys and values: compares the graph with the custom operator for attention over both types.
    ///
    /// Of a model with experts, few tokens may choose another one then; if `exactly`, none may.
    pub(crate) fn run_i8(
        &self,
        model: &Bytes,
        edits: Prepare,
        exactly: bool,
    ) -> Result<Result<(), String>, OnnxError> {
        let least = if exactly { 1.0 } else { LEAST_AGREEING };
        let Some((cut, genai)) = self.cut(model)? else {
            return Ok(Err(INSEPARABLE_LAYERS.into()));
        };
        let edits = Prepare {
            matmul: false,
            experts: false,
            ..edits
        };
        let exact = reference(&cut);
        let run = |kv_cache| match prepare::prepare(
            &exact,
            &genai.outputs.logits,
            edits,
            self.cpu.paged_domain(),
        ) {
            Some(prepared) => self.logits(prepared, edits, kv_cache, &genai),
            None => Err("its first layers are of another form than the whole".to_owned()),
        };
        Ok(run(KvCache::F32).and_then(|expected| {
            let got = run(KvCache::I8)?;
            self.equal(&got, &expected, I8_LOGIT_TOLERANCE, least)
                .map_err(|fault| format!("{fault} those with 32-bit keys and values"))
        }))
    }

    /// A decoder over the plain graph.
    fn plain(&self, graph: &Bytes, genai: &GenaiConfig) -> Result<OnnxDecoder, OnnxError> {
        let source = self.source(genai, graph);
        let opened = session::open(self.library, &source, self.target, self.cpu)?;
        self.decoder(opened, None, Prepare::PLAIN, KvCache::F32, genai)
    }

    /// The graph of the first layers, and its config. `None`: they can't be told apart.
    fn cut(&self, model: &Bytes) -> Result<Option<(Bytes, GenaiConfig)>, OnnxError> {
        let mut genai = self.genai.clone();
        genai.num_layers = genai.num_layers.min(TRIAL_LAYERS);
        let mut outputs = vec![genai.outputs.logits.clone()];
        for layer in 0..genai.num_layers {
            outputs.extend([genai.present_key(layer), genai.present_value(layer)]);
        }
        let cut = if self.genai.num_layers > TRIAL_LAYERS {
            let Some(cut) = prepare::cut(model, TRIAL_LAYERS, &outputs) else {
                return Ok(None);
            };
            cut
        } else {
            model.clone()
        };
        let boundary = crate::graph::read(self.path)?.rope_boundary;
        genai.context_length = genai
            .context_length
            .min(boundary.unwrap_or(0) + TOKENS_BEYOND_BOUNDARY);
        Ok(Some((cut, genai)))
    }

    fn verify(
        &self,
        cut: &Bytes,
        edits: Prepare,
        expected: &[f32],
        genai: &GenaiConfig,
    ) -> Result<(), String> {
        match prepare::prepare(cut, &genai.outputs.logits, edits, self.cpu.paged_domain()) {
            Some(prepared) => self.compare(prepared, edits, expected, genai),
            None => Err("its first layers are of another form than the whole".into()),
        }
    }

    /// Compares the logits of `prepared` with `expected`.
    fn compare(
        &self,
        prepared: EditedGraph,
        edits: Prepare,
        expected: &[f32],
        genai: &GenaiConfig,
    ) -> Result<(), String> {
        let got = self.logits(prepared, edits, KvCache::F32, genai)?;
        let tolerance = if edits.matmul || edits.experts {
            MATMUL_LOGIT_TOLERANCE
        } else {
            LOGIT_TOLERANCE
        };
        self.equal(&got, expected, tolerance, LEAST_AGREEING)
            .map_err(|fault| format!("{fault} those of the plain graph"))?;
        tracing::debug!(edit = edits.as_str(), "An edit of the graph holds.");
        Ok(())
    }

    /// The logits of an edited graph.
    fn logits(
        &self,
        prepared: EditedGraph,
        edits: Prepare,
        kv_cache: KvCache,
        genai: &GenaiConfig,
    ) -> Result<Vec<f32>, String> {
        let said = |error: OnnxError| error.to_string();
        let source = self.source(genai, &prepared.graph);
        let graph = session::open(self.library, &source, self.target, self.cpu).map_err(said)?;
        let mut edited = self
            .decoder(graph, prepared.tables, edits, kv_cache, genai)
            .map_err(said)?;
        steps(&mut edited).map_err(|error| error.to_string())
    }

    /// Whether logits equal the expected ones within a share of the largest of these. The error says by how much they differ
    /// from what the caller names.
    ///
    /// Of a model with experts, this share of the tokens must at `least`: where two experts score nearly alike, another rounding chooses the other one,
    /// whose result is another, and no less right.
    fn equal(&self, got: &[f32], expected: &[f32], tolerance: f32, least: f64) -> Result<(), String> {
        let found = LogitDifference::of(got, expected);
        let width = self.genai.vocab_size;
        let most_agree = || {
            let share = found.agreeing(got, expected, width, tolerance);
            tracing::debug!(share, "Tokens whose logits agree are counted.");
            share >= least
        };
        if found.is_within(tolerance) || (self.facts.experts != ExpertsForm::None && most_agree()) {
            return Ok(());
        }
        let LogitDifference { largest, difference } = found;
        Err(format!(
            "logits of up to {largest} differ by up to {difference} from"
        ))
    }

    fn source<'a>(&'a self, genai: &'a GenaiConfig, graph: &'a [u8]) -> GraphSource<'a> {
        GraphSource {
            path: self.path,
            edited: Some(EditedSource {
                graph,
                weights_folder: self.weights_folder,
            }),
            config: genai,
        }
    }

    fn decoder(
        &self,
        graph: session::OpenGraph,
        tables: Option<RopeTables>,
        edits: Prepare,
        kv_cache: KvCache,
        genai: &GenaiConfig,
    ) -> Result<OnnxDecoder, OnnxError> {
        let config = DecoderConfig {
            provider: self.target.provider,
            provider_settings: self.target.settings.clone(),
            threads: Some(self.cpu.threads),
            rows: 3,
            cache_rows: 0,
            kv_cache,
            kv_memory: None,
            prepare: edits,
            // The graph is open already.
            isa: IsaChoice::Auto,
            edit_cache: None,
            vision_weights: VisionWeights::Auto,
            paged_stand_in: self.cpu.paged,
            ..DecoderConfig::default()
        };
        let opened = OpenModel {
            graph,
            facts: self.facts,
            tables,
            prepared: edits,
            attention_fault: None,
            // Asked for here, to find out.
            i8_fault: None,
            products: Vec::new(),
        };
        OnnxDecoder::new(opened, self.path, genai, &config)
    }
}

#[cfg(test)]
mod tests {
    use phi_edge_models::ModelDir;

    use super::*;
    use crate::isa::Isa;
    use crate::paged_stand_in::RUNTIME_DOMAIN;

    const CPU: CpuResources = CpuResources {
        threads: 1,
        isa: Some(Isa::Scalar),
        paged: None,
    };

    /// The repository's own exports, where the library is at hand.
    fn trial(form: &str, judge: impl FnOnce(&Trial<'_>, &Bytes)) {
        let Some(library) = Library::for_tests() else {
            return;
        };
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(form);
        let model = ModelDir::open(&folder).unwrap();
        let path = model.decoder_path();
        let trial = Trial {
            library: &library,
            path: &path,
            weights_folder: &folder,
            facts: crate::graph::read(&path).unwrap(),
            genai: model.config(),
            target: ExecutionTarget::CPU,
            cpu: CPU,
        };
        judge(&trial, &std::fs::read(&path).unwrap().into());
    }

    #[test]
    fn every_edit_holds_on_the_exporters_graphs() {
        for form in [
            "models/demo",
            "tests/fixtures/forms/2024",
            "tests/fixtures/forms/2026",
        ] {
            trial(form, |trial, graph| {
                let possible =
                    |edits: &Prepare| prepare::prepare(graph, "logits", *edits, RUNTIME_DOMAIN).is_some();
                for edits in Prepare::ATTEMPTS.into_iter().filter(possible) {
                    assert_eq!(trial.run(graph, edits).unwrap(), Ok(()), "{form}, {edits}");
                }
            });
        }
    }

    #[test]
    fn a_wrong_edit_does_not_hold() {
        trial("models/demo", |trial, graph| {
            let graph = &reference(graph);
            let mut genai = trial.genai.clone();
            genai.context_length = 1024 + TOKENS_BEYOND_BOUNDARY;
            let plain = session::open(
                trial.library,
                &trial.source(&genai, graph),
                ExecutionTarget::CPU,
                CPU,
            )
            .unwrap();
            let mut plain = trial
                .decoder(plain, None, Prepare::PLAIN, KvCache::F32, &genai)
                .unwrap();
            let expected = steps(&mut plain).unwrap();
            let ragged = Prepare::form(Level::Ragged);
            let judge = |wrong: fn(&mut RopeTables)| {
                let mut prepared = prepare::prepare(graph, "logits", ragged, RUNTIME_DOMAIN).unwrap();
                prepared.tables.iter_mut().for_each(wrong);
                trial.compare(prepared, ragged, &expected, &genai)
            };
            assert_eq!(judge(|_| ()), Ok(()));
            // The short factors in the place of the long ones.
            let same = judge(|tables| {
                for data in &mut tables.data {
                    let short = data[..200 * tables.width * 4].to_vec();
                    let long = tables.short * tables.width * 4;
                    data[long..long + short.len()].copy_from_slice(&short);
                }
            });
            assert!(same.unwrap_err().contains("differ by"));
            // Sines for cosines.
            assert!(judge(|tables| tables.data.swap(0, 1)).is_err());
            // Numbers that are none.
            let broken = judge(|tables| tables.data[0][..400].fill(0xff));
            assert!(broken.unwrap_err().contains("NaN"));
        });
    }
}
