//! The comparison of a provider with the processor, on the first layers of the plain graph.

use phi_edge_engine::Regime;
use phi_edge_models::GenaiConfig;
use prost::bytes::Bytes;

use super::trial_steps::steps_of;
use super::{INSEPARABLE_LAYERS, LEAST_AGREEING, Trial};
use crate::error::OnnxError;
use crate::graph::ExpertsForm;
use crate::provider::ExecutionTarget;

/// The largest accepted difference of a logit, as a share of the largest logit. Providers round differently: the processor's
/// products of 4-bit weights round inputs to 8 bits, those of GPUs compute with 16-bit floats. A wrong kernel makes tenths.
const PROVIDER_LOGIT_TOLERANCE: f32 = 5e-2;

impl Trial<'_> {
    /// Compares the plain graph on this trial's provider with the processor's. The inner error says why they can't be
    /// compared.
    ///
    /// # Errors
    /// The provider can't run it, or computes something else.
    pub(crate) fn run_on_provider(&self, model: &Bytes) -> Result<Result<(), String>, OnnxError> {
        let Some((cut, genai)) = self.cut(model)? else {
            return Ok(Err(INSEPARABLE_LAYERS.into()));
        };
        if self.facts.experts == ExpertsForm::Fused {
            return Ok(Err("the processor computes experts of this form wrong".to_owned()));
        }
        let on_processor = Self {
            target: ExecutionTarget::CPU,
            ..*self
        };
        let expected = match on_processor.short_logits(&cut, &genai) {
            Ok(expected) => expected,
            Err(error) => return Ok(Err(format!("the processor can't run it: {error}"))),
        };
        let got = self.short_logits(&cut, &genai).map_err(|error| match error {
            error @ (OnnxError::ProviderUnavailable { .. } | OnnxError::PluginRefused { .. }) => error,
            other => self
                .target
                .unavailable(format!("the model's first layers can't be run on it: {other}")),
        })?;
        match self.equal(&got, &expected, PROVIDER_LOGIT_TOLERANCE, LEAST_AGREEING) {
            Ok(()) => Ok(Ok(())),
            Err(fault) => Err(OnnxError::ProviderUnavailable {
                provider: self.target.provider.as_str(),
                fault: format!("it computes the model's first layers wrong: {fault} those of the processor"),
                advice: "Update the GPU's driver or the library".to_owned(),
            }),
        }
    }

    /// The logits of short sequences. The rope factors of long ones are a matter of the graph's form, and of the edits that
    /// change it: a provider may compute one form of them right and the other wrong.
    fn short_logits(&self, graph: &Bytes, genai: &GenaiConfig) -> Result<Vec<f32>, OnnxError> {
        let mut decoder = self.plain(graph, genai)?;
        steps_of(&mut decoder, [Regime::Short; 3]).map_err(|error| OnnxError::Runtime(error.to_string()))
    }
}
