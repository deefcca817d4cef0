//! Opening an image encoder: where its graph is cut, and the form of its weights.

use std::path::Path;

use ort::session::{RunOptions, Session};
use phi_edge_engine::{ImageEncoding, ImageId, Interrupt};
use phi_edge_models::{ModelDir, VisionConfig};
use prost::bytes::Bytes;

use super::sessions::{CutSessions, Sessions};
use super::trial_image::{relative_error, trial_image};
use super::{VisionEncoder, VisionWeights};
use crate::custom_operators;
use crate::edit_cache::{EditCache, Tried, weights_identity};
use crate::error::{OnnxError, one_line};
use crate::graph_file::{folder_of, read_graph};
use crate::isa::{CpuResources, Isa};
use crate::library::Library;
use crate::matmul;
use crate::prepare::{CutEncoder, EncoderNames, LocatedGraph, cut_encoder, quantise_matmuls, resolve_links};
use crate::processor::processor_name;
use crate::provider::{ExecutionTarget, Provider, check_placement};
use crate::session;

/// The largest accepted relative error of features of the graph that is cut. Seen: none.
const CUT_TOLERANCE: f64 = 1e-3;
/// The largest relative error of features that `auto` accepts of quantised weights.
const MOST_LOSS: f64 = 0.05;

/// What an encoder is opened from.
pub(crate) struct EncoderSource<'a> {
    pub(crate) library: &'a Library,
    pub(crate) model: &'a ModelDir,
    /// The provider of the decoder.
    pub(crate) target: ExecutionTarget<'a>,
    pub(crate) cpu: CpuResources,
    pub(crate) weights: VisionWeights,
    pub(crate) edit_cache: Option<&'a Path>,
}

/// Opens the model's image encoder; `None`: it has none.
///
/// It is opened with the model, not with the first image: a fault is told at the start, and memory is counted before keys
/// and values get what is left.
pub(crate) fn open(source: &EncoderSource<'_>) -> Result<Option<VisionEncoder>, OnnxError> {
    let (Some(names), Some(path)) = (source.model.config().vision.as_ref(), source.model.encoder_path())
    else {
        return Ok(None);
    };
    let opening = Opening {
        source,
        names,
        path: &path,
    };
    let Ok(graph) = read_graph(&path) else {
        // A graph that holds its weights itself, or can't be read: opening it gives the best error.
        let mut builder = session::builder(source.library, source.target, source.cpu)?;
        let session = custom_operators::commit(|| builder.commit_from_file(&path))
            .map_err(|error| opening.refused(&one_line(error)))?;
        opening.check_placement(&session)?;
        let encoder = opening.encoder(Sessions::Whole(session))?;
        return match source.weights {
            VisionWeights::Auto | VisionWeights::F32 => Ok(Some(encoder)),
            _ => Err(opening.unavailable("the graph holds its weights itself".into())),
        };
    };
    let located = resolve_links(graph, folder_of(&path));
    let cache = opening.cache(&located);
    let form = opening.form(&located, &cache)?;
    opening.quantised(&located, &cache, &form).map(Some)
}

/// The form of a graph: whole, or cut at a value whose axis counts crops.
enum Form {
    Whole,
    Cut(CutEncoder, usize),
}

struct Opening<'a> {
    source: &'a EncoderSource<'a>,
    names: &'a VisionConfig,
    path: &'a Path,
}

impl Opening<'_> {
    fn cache(&self, located: &LocatedGraph) -> EditCache {
        let processor = processor_name();
        let weights = weights_identity(self.source.model.path());
        let provider = self.source.target.identity();
        let circumstances = [
            weights.as_str(),
            self.source.library.description(),
            &provider,
            &processor,
            matmul::REVISION,
            self.source.cpu.isa.map_or("none", Isa::as_str),
        ];
        EditCache::for_graph(&located.graph, &circumstances, self.source.edit_cache)
    }

    /// The form of the graph that is used.
    fn form(&self, located: &LocatedGraph, cache: &EditCache) -> Result<Form, OnnxError> {
        let names = EncoderNames {
            pixel_values: &self.names.pixel_values,
            image_sizes: &self.names.image_sizes,
            image_features: &self.names.image_features,
        };
        let mut whole: Option<Result<Vec<f32>, String>> = None;
        for (number, cut) in cut_encoder(&located.graph, &names).into_iter().enumerate() {
            for axis in 0..2 {
                let tried = Tried::EncoderCut { number, axis };
                let outcome = if let Some(outcome) = cache.get(tried) {
                    outcome
                } else {
                    if whole.is_none() {
                        let mut encoder = self.open(located, &Form::Whole, None)?;
                        whole = Some(trial(&mut encoder));
                    }
                    // Where the whole can't be run there is nothing to compare with.
                    let Some(Ok(whole)) = &whole else { continue };
                    let outcome = self.try_cut(located, &cut, axis, whole);
                    cache.put(tried, &outcome);
                    outcome
                };
                match outcome {
                    Ok(()) => return Ok(Form::Cut(cut, axis)),
                    Err(fault) => tracing::debug!(
                        value = cut.value,
                        axis,
                        fault,
                        "The image encoder is not cut here."
                    ),
                }
            }
        }
        tracing::warn!("The image encoder can't be cut: an image runs as a whole, and text waits meanwhile.");
        Ok(Form::Whole)
    }

    fn try_cut(
        &self,
        located: &LocatedGraph,
        cut: &CutEncoder,
        axis: usize,
        whole: &[f32],
    ) -> Result<(), String> {
        let mut encoder = self
            .open_cut(located, cut, axis, None)
            .map_err(|error| error.to_string())?;
        encoder.silence().map_err(|error| error.to_string())?;
        let error = relative_error(&trial(&mut encoder)?, whole);
        tracing::debug!(
            error,
            value = cut.value,
            "A cut image encoder is compared with the whole."
        );
        if error <= CUT_TOLERANCE {
            Ok(())
        } else {
            Err(format!(
                "features differ by {error} from those of the whole graph"
            ))
        }
    }

    /// The encoder with the weights that are asked for.
    fn quantised(
        &self,
        located: &LocatedGraph,
        cache: &EditCache,
        form: &Form,
    ) -> Result<VisionEncoder, OnnxError> {
        let asked = self.source.weights;
        let Some(quantisation) = asked.quantisation() else {
            return self.open(located, form, None);
        };
        match self.try_quantised(located, cache, form, quantisation) {
            Ok(encoder) => Ok(encoder),
            Err(fault) if asked == VisionWeights::Auto => {
                tracing::info!(fault, "The image encoder's weights are not quantised.");
                self.open(located, form, None)
            }
            Err(fault) => Err(self.unavailable(fault)),
        }
    }

    fn try_quantised(
        &self,
        located: &LocatedGraph,
        cache: &EditCache,
        form: &Form,
        (bits, block): (i64, i64),
    ) -> Result<VisionEncoder, String> {
        let said = |error: OnnxError| error.to_string();
        if self.source.target.provider != Provider::Cpu || self.source.cpu.isa.is_none() {
            return Err(
                "it needs a processor of x86-64 with AVX2 or of 64-bit Arm, and runtime.isa other than \"none\"".into(),
            );
        }
        let graph = match form {
            Form::Whole => &located.graph,
            Form::Cut(cut, _) => &cut.crops,
        };
        if quantise_matmuls(graph, bits, block).is_none() {
            return Err("the encoder has no products with matrices of 32-bit floats".into());
        }
        let tried = Tried::EncoderWeights(bits);
        let cached = cache.note(tried).and_then(|note| note.parse::<f64>().ok());
        let expected = match cached {
            Some(_) => None,
            // The encoder is closed again before the next one is opened: memory holds one.
            None => Some(trial(&mut self.open(located, form, None).map_err(said)?)?),
        };
        let mut encoder = self.open(located, form, Some((bits, block))).map_err(said)?;
        let loss = match (cached, expected) {
            (Some(loss), _) => loss,
            (None, expected) => {
                let loss = relative_error(&trial(&mut encoder)?, &expected.unwrap_or_default());
                cache.put_note(tried, &loss.to_string());
                loss
            }
        };
        if self.source.weights == VisionWeights::Auto && loss > MOST_LOSS {
            return Err(format!("features differ by {loss}, more than {MOST_LOSS}"));
        }
        encoder.weights = match bits {
            4 => VisionWeights::Int4,
            _ => VisionWeights::Int8,
        };
        encoder.loss = Some(loss);
        Ok(encoder)
    }

    fn open(
        &self,
        located: &LocatedGraph,
        form: &Form,
        quantisation: Option<(i64, i64)>,
    ) -> Result<VisionEncoder, OnnxError> {
        match form {
            Form::Whole => {
                let session = self.session(&located.graph, &located.weights_folder, quantisation)?;
                self.encoder(Sessions::Whole(session))
            }
            Form::Cut(cut, axis) => self.open_cut(located, cut, *axis, quantisation),
        }
    }

    fn open_cut(
        &self,
        located: &LocatedGraph,
        cut: &CutEncoder,
        axis: usize,
        quantisation: Option<(i64, i64)>,
    ) -> Result<VisionEncoder, OnnxError> {
        let open = |graph: &Bytes| self.session(graph, &located.weights_folder, quantisation);
        self.encoder(Sessions::Cut(CutSessions {
            crops: open(&cut.crops)?,
            join: open(&cut.join)?,
            value: cut.value.clone(),
            axis,
            dims: Vec::new(),
        }))
    }

    fn session(
        &self,
        graph: &Bytes,
        folder: &Path,
        quantisation: Option<(i64, i64)>,
    ) -> Result<Session, OnnxError> {
        let quantised = quantisation.and_then(|(bits, block)| quantise_matmuls(graph, bits, block));
        let mut builder = session::builder_beside_weights(
            self.source.library,
            self.source.target,
            self.source.cpu,
            folder,
        )?;
        let session =
            custom_operators::commit(|| builder.commit_from_memory(quantised.as_ref().unwrap_or(graph)))
                .map_err(|error| self.refused(&one_line(error)))?;
        self.check_placement(&session)?;
        Ok(session)
    }

    /// Fails where nodes would run on the processor that may not.
    fn check_placement(&self, session: &Session) -> Result<(), OnnxError> {
        let target = self.source.target;
        if target.provider != Provider::Cpu {
            check_placement(session, target)?;
        }
        Ok(())
    }

    fn encoder(&self, sessions: Sessions) -> Result<VisionEncoder, OnnxError> {
        let (element, wanted_crops) = sessions
            .pixel_form(self.names)
            .map_err(|fault| self.fault(fault))?;
        Ok(VisionEncoder {
            sessions,
            names: self.names.clone(),
            element,
            wanted_crops,
            width: self.source.model.config().hidden_size,
            options: RunOptions::new()?.into(),
            weights: VisionWeights::F32,
            loss: None,
        })
    }

    fn fault(&self, fault: String) -> OnnxError {
        OnnxError::Model {
            path: self.path.to_path_buf(),
            fault,
        }
    }

    fn refused(&self, said: &str) -> OnnxError {
        self.fault(format!(
            "ONNX Runtime refuses it: {said}. Copy or export the model again"
        ))
    }

    fn unavailable(&self, fault: String) -> OnnxError {
        OnnxError::VisionWeightsUnavailable {
            weights: self.source.weights.as_str(),
            fault,
        }
    }
}

/// The features of the drawn image.
fn trial(encoder: &mut VisionEncoder) -> Result<Vec<f32>, String> {
    let pixels = trial_image();
    let mut encoding = ImageEncoding::default();
    loop {
        let next = encoder.encode_next(ImageId([0; 16]), &pixels, &mut encoding, &Interrupt::new());
        if let Some(features) = next.map_err(|error| error.to_string())? {
            return Ok(features.data);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cut_encoder_gives_what_the_whole_gives_and_a_wrong_cut_is_refused() {
        let fixtures = std::env::var_os("PHI_EDGE_FIXTURES").map(std::path::PathBuf::from);
        let folder = fixtures
            .map(|fixtures| fixtures.join("phi35-vision-tiny"))
            .filter(|folder| folder.is_dir());
        let (Some(folder), Some(library)) = (folder, Library::for_tests()) else {
            println!("SKIPPED: fixture phi35-vision-tiny or the library is absent");
            return;
        };
        let model = ModelDir::open(&folder).unwrap();
        let cache_folder = tempfile::tempdir().unwrap();
        let file = cache_folder.path().join("edits.json");
        let source = EncoderSource {
            library: &library,
            model: &model,
            target: ExecutionTarget::CPU,
            cpu: CpuResources {
                threads: 2,
                isa: Isa::detect(),
                paged: None,
            },
            weights: VisionWeights::F32,
            edit_cache: Some(&file),
        };
        let path = model.encoder_path().unwrap();
        let opening = Opening {
            source: &source,
            names: model.config().vision.as_ref().unwrap(),
            path: &path,
        };
        let located = resolve_links(read_graph(&path).unwrap(), &folder);
        let cache = opening.cache(&located);
        let Form::Cut(cut, axis) = opening.form(&located, &cache).unwrap() else {
            panic!("the encoder is not cut");
        };
        let whole = trial(&mut opening.open(&located, &Form::Whole, None).unwrap()).unwrap();
        assert_eq!(opening.try_cut(&located, &cut, axis, &whole), Ok(()));
        assert!(opening.try_cut(&located, &cut, 1 - axis, &whole).is_err());
        let other: Vec<f32> = whole.iter().map(|value| value * 1.01).collect();
        let fault = opening.try_cut(&located, &cut, axis, &other).unwrap_err();
        assert!(fault.contains("differ by"), "{fault}");
        // The outcome is kept.
        assert_eq!(cache.get(Tried::EncoderCut { number: 0, axis }), Some(Ok(())));
        assert!(matches!(opening.form(&located, &cache).unwrap(), Form::Cut(_, again) if again == axis));
    }
}
