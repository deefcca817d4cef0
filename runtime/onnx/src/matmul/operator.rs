//! The binding of the matmul to ONNX Runtime.

use parking_lot::Mutex;
use std::sync::Arc;

use ort::operator::{ComputeContext, Kernel, KernelContext, Operator, OperatorInput, OperatorOutput};
use ort::value::{TensorElementType, TensorValueType};

use crate::isa::Isa;
use crate::matmul::OPERATOR;
use crate::matmul::multiply::{RowScratch, multiply};
use crate::matmul::operands::WeightBits;
use crate::matmul::pack::{MatrixShape, PackedWeights, WeightInputs};
use crate::matmul::release::{bytes_of, release};
use crate::workers::SessionThreads;

/// Scratch buffers that the kernels of a session share.
pub(super) type RowScratchPool = Arc<Mutex<Vec<RowScratch>>>;

/// The operator of one session.
pub(crate) struct MatMul {
    isa: Isa,
    threads: usize,
    scratch: RowScratchPool,
}

impl MatMul {
    /// An operator with the kernels of `isa`, which packs weights on `threads` threads.
    pub(crate) fn new(isa: Isa, threads: usize) -> Self {
        Self {
            isa,
            threads,
            scratch: Arc::default(),
        }
    }
}

impl Operator for MatMul {
    type Kernel<'attr> = MatMulKernel;

    fn name(&self) -> &'static str {
        OPERATOR
    }

    fn inputs(&self) -> impl IntoIterator<Item = OperatorInput> {
        [
            OperatorInput::required(TensorElementType::Float32),
            OperatorInput::required(TensorElementType::Uint8),
            OperatorInput::required(TensorElementType::Float32),
            OperatorInput::optional(TensorElementType::Uint8),
        ]
    }

    fn outputs(&self) -> impl IntoIterator<Item = OperatorOutput> {
        [OperatorOutput::required(TensorElementType::Float32)]
    }

    fn create_kernel(&self, context: &KernelContext<'_>) -> ort::Result<MatMulKernel> {
        let shape = matrix_shape(context, WeightBits::Four)?;
        let weights = context.constant_input::<TensorValueType<u8>>(1)?;
        let scales = context.constant_input::<TensorValueType<f32>>(2)?;
        let zeros = (context.inputs()?.len() > 3)
            .then(|| context.constant_input::<TensorValueType<u8>>(3))
            .transpose()?;
        let source = WeightInputs {
            weights: weights.extract_tensor().1,
            scales: scales.extract_tensor().1,
            zeros: zeros.as_ref().map(|zeros| zeros.extract_tensor().1),
        };
        let packed = PackedWeights::new(shape, source, (self.isa, self.threads)).map_err(ort::Error::new)?;
        // The constant inputs are not read after packing.
        release(&[source.weights, bytes_of(source.scales)]);
        Ok(MatMulKernel {
            packed,
            scratch: Arc::clone(&self.scratch),
        })
    }
}

/// A whole number that a node has as an attribute.
pub(crate) fn attribute(context: &KernelContext<'_>, name: &str) -> ort::Result<usize> {
    let value = context.get::<i64>(name);
    let value = value.and_then(|value| usize::try_from(value).ok());
    value.ok_or_else(|| ort::Error::new(format!("the attribute {name} is missing")))
}

/// The shape of a node's matrix, whose weights have `bits`.
pub(super) fn matrix_shape(context: &KernelContext<'_>, bits: WeightBits) -> ort::Result<MatrixShape> {
    Ok(MatrixShape {
        k: attribute(context, "K")?,
        n: attribute(context, "N")?,
        block: attribute(context, "block_size")?,
        bits,
    })
}

/// The kernel of one matrix.
pub(crate) struct MatMulKernel {
    pub(super) packed: PackedWeights,
    pub(super) scratch: RowScratchPool,
}

impl Kernel for MatMulKernel {
    fn compute(&mut self, context: &ComputeContext) -> ort::Result<()> {
        let missing = || ort::Error::new("a tensor is missing");
        let input = context.input(0)?.ok_or_else(missing)?;
        let (shape, input) = input.try_extract_tensor::<f32>()?;
        let mut dims = shape.to_vec();
        let n = i64::try_from(self.packed.shape.n).map_err(|_| missing())?;
        *dims.last_mut().ok_or_else(missing)? = n;
        let mut output = context.output(0, dims)?.ok_or_else(missing)?;
        let (_, output) = output.try_extract_tensor_mut::<f32>()?;
        let pool = || self.scratch.lock();
        let mut scratch = pool().pop().unwrap_or_default();
        let outcome = multiply(
            &self.packed,
            input,
            output,
            &mut scratch,
            &SessionThreads(context),
        );
        pool().push(scratch);
        outcome.map_err(ort::Error::new)
    }
}
