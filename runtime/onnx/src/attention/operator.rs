//! The binding of attention to ONNX Runtime.

use std::sync::Arc;

use ort::operator::{ComputeContext, Kernel, KernelContext, Operator, OperatorInput, OperatorOutput};
use ort::value::TensorElementType;
use parking_lot::Mutex;

use super::OPERATOR;
use super::attend::{AttentionInputs, QueryScratch, attend};
use super::kernel::{AttentionKernels, Heads};
use super::layout::{LayerBlocks, RowTable};
use crate::isa::Isa;
use crate::workers::SessionThreads;

/// Scratch buffers that the kernels of a session share.
type QueryScratchPool = Arc<Mutex<Vec<QueryScratch>>>;

/// The operator of one session.
pub(crate) struct Attention {
    kernels: &'static AttentionKernels,
    scratch: QueryScratchPool,
}

impl Attention {
    /// An operator with the kernels of `isa`, which this processor has.
    pub(crate) fn new(isa: Isa) -> Self {
        Self {
            kernels: AttentionKernels::of(isa),
            scratch: Arc::default(),
        }
    }
}

impl Operator for Attention {
    type Kernel<'attr> = AttentionKernel;

    fn name(&self) -> &'static str {
        OPERATOR
    }

    /// Packed queries, keys and values; the last token of each row; cosines and sines; positions; lengths; the blocks of all
    /// layers; the table of rows ([`crate::prepare`] wires them so).
    fn inputs(&self) -> impl IntoIterator<Item = OperatorInput> {
        use TensorElementType::{Float32, Int32, Int64, Uint8};
        [Float32, Int32, Float32, Float32, Int64, Int32, Uint8, Int32].map(OperatorInput::required)
    }

    fn outputs(&self) -> impl IntoIterator<Item = OperatorOutput> {
        [OperatorOutput::required(TensorElementType::Float32)]
    }

    fn create_kernel(&self, context: &KernelContext<'_>) -> ort::Result<AttentionKernel> {
        let missing = |name: &str| ort::Error::new(format!("the attribute {name} is missing"));
        let count = |name: &str| {
            let value = context.get::<i64>(name);
            let value = value.and_then(|value| usize::try_from(value).ok());
            value.ok_or_else(|| missing(name))
        };
        Ok(AttentionKernel {
            kernels: self.kernels,
            queries: count("num_heads")?,
            keys: count("kv_num_heads")?,
            layer: count(super::LAYER)?,
            scale: context.get::<f32>("scale").filter(|scale| *scale != 0.0),
            scratch: Arc::clone(&self.scratch),
        })
    }
}

/// The kernel of one layer.
pub(crate) struct AttentionKernel {
    kernels: &'static AttentionKernels,
    queries: usize,
    keys: usize,
    layer: usize,
    /// `None`: one divided by the square root of a vector's size.
    scale: Option<f32>,
    scratch: QueryScratchPool,
}

impl Kernel for AttentionKernel {
    fn compute(&mut self, context: &ComputeContext) -> ort::Result<()> {
        let missing = || ort::Error::new("a tensor is missing or of another form");
        let input = |at: usize| context.input(at)?.ok_or_else(missing);
        let (packed, last, cosines, sines) = (input(0)?, input(1)?, input(2)?, input(3)?);
        let (positions, lengths, blocks, table) = (input(4)?, input(5)?, input(6)?, input(7)?);
        let (shape, packed) = packed.try_extract_tensor::<f32>()?;
        let &[rows, width, all] = &shape[..] else {
            return Err(missing());
        };
        let (rope, cosines) = cosines.try_extract_tensor::<f32>()?;
        let size_of = |dim: i64| usize::try_from(dim).map_err(|_| missing());
        let vectors = self.queries + 2 * self.keys;
        let size = size_of(all)?.checked_div(vectors).ok_or_else(missing)?;
        let heads = Heads {
            queries: self.queries,
            keys: self.keys,
            size,
            #[allow(clippy::cast_precision_loss, reason = "some hundred at most")]
            scale: self.scale.unwrap_or_else(|| (size as f32).sqrt().recip()),
        };
        let (dims, blocks) = blocks.try_extract_tensor::<u8>()?;
        let blocks = self.layer_blocks(dims, blocks.as_ptr()).ok_or_else(missing)?;
        let table = table.try_extract_tensor::<i32>()?.1;
        let table = RowTable::read(table, size_of(rows)?, blocks.rows).map_err(ort::Error::new)?;
        let inputs = AttentionInputs {
            packed,
            width: size_of(width)?,
            tables: [cosines, sines.try_extract_tensor::<f32>()?.1],
            half: size_of(rope.last().copied().unwrap_or(0))?,
            positions: positions.try_extract_tensor::<i64>()?.1,
            lengths: lengths.try_extract_tensor::<i32>()?.1,
            last: last.try_extract_tensor::<i32>()?.1,
            rows: &table,
        };
        let values = i64::try_from(heads.queries * heads.size).map_err(|_| missing())?;
        let mut output = context.output(0, [rows, width, values])?.ok_or_else(missing)?;
        let output = output.try_extract_tensor_mut::<f32>()?.1;
        let pool = || self.scratch.lock();
        let mut scratch = pool().pop().unwrap_or_default();
        // SAFETY: graphs with the operator are opened only where the processor has what it needs, and bound to blocks
        // that it supports; the decoder's KV memory is of these dimensions, and one run at a time uses it.
        let outcome = unsafe {
            attend(
                self.kernels,
                heads,
                &inputs,
                blocks,
                output,
                &mut scratch,
                &SessionThreads(context),
            )
        };
        pool().push(scratch);
        outcome.map_err(ort::Error::new)
    }
}

impl AttentionKernel {
    /// This layer's part of the blocks `[layers, rows, blocks, heads, bytes]`.
    fn layer_blocks(&self, dims: &[i64], base: *const u8) -> Option<LayerBlocks> {
        let &[layers, rows, blocks, heads, head_bytes] = dims else {
            return None;
        };
        let size = |dim: i64| usize::try_from(dim).ok();
        let layer = LayerBlocks {
            // The operator writes to its input: the new tokens' keys and values, which nothing else reads in the run.
            base: base.cast_mut(),
            rows: size(rows)?,
            blocks: size(blocks)?,
            heads: size(heads)?,
            head_bytes: size(head_bytes)?,
        };
        (self.layer < size(layers)?).then(|| LayerBlocks {
            base: layer
                .base
                .wrapping_add(self.layer * layer.rows * layer.blocks * layer.stride()),
            ..layer
        })
    }
}
