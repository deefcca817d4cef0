//! The binding of the matmul whose weights are floats in the file: they are quantised when a graph is loaded.

use std::sync::Arc;

use ort::operator::{KernelContext, Operator, OperatorInput, OperatorOutput};
use ort::value::{TensorElementType, TensorValueType};

use crate::isa::Isa;
use crate::matmul::QUANTISING_OPERATOR;
use crate::matmul::operands::WeightBits;
use crate::matmul::operator::{MatMulKernel, RowScratchPool, attribute, matrix_shape};
use crate::matmul::pack::PackedWeights;
use crate::matmul::release::{bytes_of, release};

/// The operator of one session.
pub(crate) struct QuantisingMatMul {
    isa: Isa,
    threads: usize,
    scratch: RowScratchPool,
}

impl QuantisingMatMul {
    /// An operator with the kernels of `isa`, which quantises on `threads` threads.
    pub(crate) fn new(isa: Isa, threads: usize) -> Self {
        Self {
            isa,
            threads,
            scratch: Arc::default(),
        }
    }
}

impl Operator for QuantisingMatMul {
    type Kernel<'attr> = MatMulKernel;

    fn name(&self) -> &'static str {
        QUANTISING_OPERATOR
    }

    fn inputs(&self) -> impl IntoIterator<Item = OperatorInput> {
        [
            OperatorInput::required(TensorElementType::Float32),
            OperatorInput::required(TensorElementType::Float32),
        ]
    }

    fn outputs(&self) -> impl IntoIterator<Item = OperatorOutput> {
        [OperatorOutput::required(TensorElementType::Float32)]
    }

    fn create_kernel(&self, context: &KernelContext<'_>) -> ort::Result<MatMulKernel> {
        let bits = match attribute(context, "bits")? {
            4 => WeightBits::Four,
            8 => WeightBits::Eight,
            other => {
                return Err(ort::Error::new(format!(
                    "weights of {other} bits are not supported"
                )));
            }
        };
        let shape = matrix_shape(context, bits)?;
        let weights = context.constant_input::<TensorValueType<f32>>(1)?;
        let weights = weights.extract_tensor().1;
        let packed =
            PackedWeights::quantised(shape, weights, (self.isa, self.threads)).map_err(ort::Error::new)?;
        // The constant input is not read again.
        release(&[bytes_of(weights)]);
        Ok(MatMulKernel {
            packed,
            scratch: Arc::clone(&self.scratch),
        })
    }
}
