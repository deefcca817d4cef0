//! A session over the experts of one layer alone: what the operator for them is tried and measured on.

use std::path::Path;

use ort::session::Session;
use ort::value::Tensor;

use crate::custom_operators;
use crate::error::one_line;
use crate::isa::CpuResources;
use crate::library::Library;
use crate::prepare::SingleExperts;
use crate::provider::ExecutionTarget;
use crate::session;

/// A session over one layer's experts.
pub(crate) struct ExpertsSession<'a> {
    session: Session,
    experts: &'a SingleExperts,
}

/// The inputs of a run.
#[derive(Debug, Clone)]
pub(crate) struct ExpertInputs {
    /// `[tokens, hidden]`.
    pub(crate) tokens: Vec<f32>,
    /// `[tokens, experts]`.
    pub(crate) scores: Vec<f32>,
    /// `[tokens, experts]`, none below 0.
    pub(crate) weights: Vec<f32>,
}

impl<'a> ExpertsSession<'a> {
    /// Opens `graph`, `experts`' own or an edited one, on the processor, beside the weights in `folder`.
    pub(crate) fn open(
        library: &Library,
        cpu: CpuResources,
        folder: &Path,
        graph: &[u8],
        experts: &'a SingleExperts,
    ) -> Result<Self, String> {
        let mut builder = session::builder_beside_weights(library, ExecutionTarget::CPU, cpu, folder)
            .map_err(|error| error.to_string())?;
        let session = custom_operators::commit(|| builder.commit_from_memory(graph)).map_err(one_line)?;
        Ok(Self { session, experts })
    }

    /// The results `[tokens, hidden]`.
    pub(crate) fn run(&mut self, inputs: ExpertInputs) -> Result<Vec<f32>, String> {
        let SingleExperts { hidden, experts, .. } = *self.experts;
        let tokens = inputs.tokens.len() / hidden.max(1);
        let values = [inputs.tokens, inputs.scores, inputs.weights];
        let inputs = self
            .experts
            .inputs
            .iter()
            .zip([hidden, experts, experts])
            .zip(values);
        let inputs = inputs.map(|((name, width), values)| {
            let tensor = Tensor::from_array(([tokens, width], values)).map_err(one_line)?;
            Ok((name.clone(), tensor.into_dyn()))
        });
        let inputs = inputs.collect::<Result<Vec<_>, String>>()?;
        let outputs = self.session.run(inputs).map_err(one_line)?;
        let output = outputs.get(&self.experts.output).ok_or("a result is missing")?;
        Ok(output.try_extract_tensor::<f32>().map_err(one_line)?.1.to_vec())
    }
}
