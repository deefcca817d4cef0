//! The comparison of a provider with the processor, on the first layers of the plain graph.

use prost::bytes::Bytes;

use super::{INSEPARABLE_LAYERS, Trial, equal};
use crate::error::OnnxError;
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
        let on_processor = Self {
            target: ExecutionTarget::CPU,
            ..*self
        };
        let expected = match on_processor.plain_logits(&cut, &genai) {
            Ok(expected) => expected,
            Err(error) => return Ok(Err(format!("the processor can't run it: {error}"))),
        };
        let got = self.plain_logits(&cut, &genai).map_err(|error| match error {
            error @ (OnnxError::ProviderUnavailable { .. } | OnnxError::PluginRefused { .. }) => error,
            other => self
                .target
                .unavailable(format!("the model's first layers can't be run on it: {other}")),
        })?;
        match equal(&got, &expected, PROVIDER_LOGIT_TOLERANCE) {
            Ok(()) => Ok(Ok(())),
            Err(fault) => Err(OnnxError::ProviderUnavailable {
                provider: self.target.provider.as_str(),
                fault: format!("it computes the model's first layers wrong: {fault} those of the processor"),
                advice: "Update the GPU's driver or the library".to_owned(),
            }),
        }
    }
}
