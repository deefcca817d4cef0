//! The binding of the experts to ONNX Runtime.

use std::sync::Arc;

use ort::operator::{ComputeContext, Kernel, KernelContext, Operator, OperatorInput, OperatorOutput};
use ort::value::{TensorElementType, TensorValueType};
use parking_lot::Mutex;

use crate::experts::apply::{ExpertScratch, apply};
use crate::experts::packed_experts::{ExpertsShape, PackedExperts};
use crate::experts::routing::{RouterOutputs, Routing};
use crate::experts::swiglu::SwiGlu;
use crate::experts::{HAS_LENGTHS, HAS_ZEROS, OPERATOR, input};
use crate::isa::Isa;
use crate::matmul::{WeightInputs, attribute, bytes_of, release};

/// Scratch buffers that the kernels of a session share.
type ExpertScratchPool = Arc<Mutex<Vec<ExpertScratch>>>;

/// The operator of one session.
pub(crate) struct Experts {
    isa: Isa,
    threads: usize,
    scratch: ExpertScratchPool,
}

impl Experts {
    /// An operator with the kernels of `isa`, which packs weights on `threads` threads.
    pub(crate) fn new(isa: Isa, threads: usize) -> Self {
        Self {
            isa,
            threads,
            scratch: Arc::default(),
        }
    }
}

impl Operator for Experts {
    type Kernel<'attr> = ExpertsKernel;

    fn name(&self) -> &'static str {
        OPERATOR
    }

    fn inputs(&self) -> impl IntoIterator<Item = OperatorInput> {
        let (float, byte) = (TensorElementType::Float32, TensorElementType::Uint8);
        [
            OperatorInput::required(float),
            OperatorInput::required(float),
            OperatorInput::required(float),
            OperatorInput::required(byte),
            OperatorInput::required(float),
            OperatorInput::required(byte),
            OperatorInput::required(float),
            OperatorInput::optional(TensorElementType::Int32),
            OperatorInput::optional(byte),
            OperatorInput::optional(byte),
        ]
    }

    fn outputs(&self) -> impl IntoIterator<Item = OperatorOutput> {
        [OperatorOutput::required(TensorElementType::Float32)]
    }

    fn create_kernel(&self, context: &KernelContext<'_>) -> ort::Result<ExpertsKernel> {
        let count = |name: &str| attribute(context, name);
        let float = |name: &str| {
            let value = context.get::<f32>(name);
            value.ok_or_else(|| ort::Error::new(format!("the attribute {name} is missing")))
        };
        let bytes = |at: usize| context.constant_input::<TensorValueType<u8>>(at);
        let floats = |at: usize| context.constant_input::<TensorValueType<f32>>(at);
        let (first, first_scales) = (bytes(input::IN_WEIGHTS)?, floats(input::IN_SCALES)?);
        let (second, second_scales) = (bytes(input::OUT_WEIGHTS)?, floats(input::OUT_SCALES)?);
        let has_zeros = count(HAS_ZEROS)? == 1;
        let zeros = |at: usize| has_zeros.then(|| bytes(at)).transpose();
        let (first_zeros, second_zeros) = (zeros(input::IN_ZEROS)?, zeros(input::OUT_ZEROS)?);
        let dims = |shape: &[i64]| -> Vec<usize> {
            shape
                .iter()
                .map(|dim| usize::try_from(*dim).unwrap_or(0))
                .collect()
        };
        let [experts, wide, _] = dims(first.extract_tensor().0)[..] else {
            return Err(ort::Error::new("the experts' weights have not three dimensions"));
        };
        let [_, hidden, _] = dims(second.extract_tensor().0)[..] else {
            return Err(ort::Error::new("the experts' weights have not three dimensions"));
        };
        let shape = ExpertsShape {
            experts,
            hidden,
            inner: wide / 2,
            block: count("block_size")?,
        };
        let first = WeightInputs {
            weights: first.extract_tensor().1,
            scales: first_scales.extract_tensor().1,
            zeros: first_zeros.as_ref().map(|zeros| zeros.extract_tensor().1),
        };
        let second = WeightInputs {
            weights: second.extract_tensor().1,
            scales: second_scales.extract_tensor().1,
            zeros: second_zeros.as_ref().map(|zeros| zeros.extract_tensor().1),
        };
        let packed =
            PackedExperts::new(shape, first, second, (self.isa, self.threads)).map_err(ort::Error::new)?;
        // The constant inputs are not read after packing.
        release(&[
            first.weights,
            second.weights,
            bytes_of(first.scales),
            bytes_of(second.scales),
        ]);
        Ok(ExpertsKernel {
            packed,
            chosen: count("k")?,
            swiglu: SwiGlu {
                alpha: float("activation_alpha")?,
                beta: float("activation_beta")?,
            },
            has_lengths: count(HAS_LENGTHS)? == 1,
            scratch: Arc::clone(&self.scratch),
        })
    }
}

/// The kernel of one layer.
pub(crate) struct ExpertsKernel {
    packed: PackedExperts,
    /// How many experts a token has.
    chosen: usize,
    swiglu: SwiGlu,
    has_lengths: bool,
    scratch: ExpertScratchPool,
}

impl Kernel for ExpertsKernel {
    fn compute(&mut self, context: &ComputeContext) -> ort::Result<()> {
        let missing = || ort::Error::new("a tensor is missing or of another form");
        let input = |at: usize| context.input(at)?.ok_or_else(missing);
        let (tokens, scores, weights) = (
            input(input::TOKENS)?,
            input(input::SCORES)?,
            input(input::ROUTER_WEIGHTS)?,
        );
        let (shape, tokens) = tokens.try_extract_tensor::<f32>()?;
        let dims = shape.to_vec();
        let scores = RouterOutputs {
            scores: scores.try_extract_tensor::<f32>()?.1,
            weights: weights.try_extract_tensor::<f32>()?.1,
            experts: self.packed.shape.experts,
            chosen: self.chosen,
        };
        let count = tokens.len() / self.packed.shape.hidden.max(1);
        if [scores.scores.len(), scores.weights.len()] != [count * scores.experts; 2] {
            return Err(missing());
        }
        let routing = if self.has_lengths {
            let lengths = input(input::LENGTHS)?;
            let lengths = lengths.try_extract_tensor::<i32>()?.1;
            let width = count
                .checked_div(lengths.len())
                .filter(|width| *width > 0)
                .ok_or_else(missing)?;
            // Tokens behind a row's own are padding.
            Routing::new(scores, |token| {
                let length = lengths.get(token / width).copied().unwrap_or(0);
                usize::try_from(length).is_ok_and(|length| token % width < length)
            })
        } else {
            Routing::new(scores, |_| true)
        };
        let mut output = context.output(0, dims)?.ok_or_else(missing)?;
        let (_, output) = output.try_extract_tensor_mut::<f32>()?;
        let pool = || self.scratch.lock();
        let mut scratch = pool().pop().unwrap_or_default();
        let outcome = apply(
            &self.packed,
            (tokens, &routing),
            self.swiglu,
            output,
            &mut scratch,
            &crate::workers::SessionThreads(context),
        );
        pool().push(scratch);
        outcome.map_err(ort::Error::new)
    }
}
