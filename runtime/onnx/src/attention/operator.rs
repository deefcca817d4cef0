//! The binding of attention to ONNX Runtime.

use parking_lot::Mutex;
use std::sync::Arc;

use ort::operator::{ComputeContext, Kernel, KernelContext, Operator, OperatorInput, OperatorOutput};
use ort::value::TensorElementType;

use crate::attention::OPERATOR;
use crate::attention::attend::{AttentionInputs, Heads, KvPointers, QueryScratch, attend};
use crate::workers::SessionThreads;

/// Scratch buffers that the kernels of a session share.
type QueryScratchPool = Arc<Mutex<Vec<QueryScratch>>>;

/// The operator of one session.
#[derive(Default)]
pub(crate) struct Attention {
    scratch: QueryScratchPool,
}

impl Operator for Attention {
    type Kernel<'attr> = AttentionKernel;

    fn name(&self) -> &'static str {
        OPERATOR
    }

    /// Packed queries, keys and values; past keys and values; the last token of each row; cosines and sines; positions;
    /// lengths ([`crate::prepare`] wires them so).
    fn inputs(&self) -> impl IntoIterator<Item = OperatorInput> {
        use TensorElementType::{Float32, Int32, Int64};
        [Float32, Float32, Float32, Int32, Float32, Float32, Int64, Int32].map(OperatorInput::required)
    }

    /// The attention's result; keys and values with those of the run.
    fn outputs(&self) -> impl IntoIterator<Item = OperatorOutput> {
        [TensorElementType::Float32; 3].map(OperatorOutput::required)
    }

    fn create_kernel(&self, context: &KernelContext<'_>) -> ort::Result<AttentionKernel> {
        let missing = |name: &str| ort::Error::new(format!("the attribute {name} is missing"));
        let count = |name: &str| {
            let value = context.get::<i64>(name);
            let value = value.and_then(|value| usize::try_from(value).ok());
            value.ok_or_else(|| missing(name))
        };
        Ok(AttentionKernel {
            queries: count("num_heads")?,
            keys: count("kv_num_heads")?,
            scale: context.get::<f32>("scale").filter(|scale| *scale != 0.0),
            scratch: Arc::clone(&self.scratch),
        })
    }
}

/// The kernel of one layer.
pub(crate) struct AttentionKernel {
    queries: usize,
    keys: usize,
    /// `None`: one divided by the square root of a vector's size.
    scale: Option<f32>,
    scratch: QueryScratchPool,
}

impl Kernel for AttentionKernel {
    fn compute(&mut self, context: &ComputeContext) -> ort::Result<()> {
        let missing = || ort::Error::new("a tensor is missing or of another form");
        let input = |at: usize| context.input(at)?.ok_or_else(missing);
        let (packed, past_keys, past_values) = (input(0)?, input(1)?, input(2)?);
        let (last, cosines, sines) = (input(3)?, input(4)?, input(5)?);
        let (positions, lengths) = (input(6)?, input(7)?);
        let (shape, packed) = packed.try_extract_tensor::<f32>()?;
        let &[rows, width, _] = &shape[..] else {
            return Err(missing());
        };
        let (past_shape, past_keys) = past_keys.try_extract_tensor::<f32>()?;
        let (_, past_values) = past_values.try_extract_tensor::<f32>()?;
        let &[_, _, room, size] = &past_shape[..] else {
            return Err(missing());
        };
        let (table, cosines) = cosines.try_extract_tensor::<f32>()?;
        let size_of = |dim: i64| usize::try_from(dim).map_err(|_| missing());
        let heads = Heads {
            queries: self.queries,
            keys: self.keys,
            size: size_of(size)?,
            #[allow(clippy::cast_precision_loss, reason = "some hundred at most")]
            scale: self.scale.unwrap_or_else(|| (size as f32).sqrt().recip()),
        };
        let inputs = AttentionInputs {
            packed,
            width: size_of(width)?,
            tables: [cosines, sines.try_extract_tensor::<f32>()?.1],
            half: size_of(table.last().copied().unwrap_or(0))?,
            positions: positions.try_extract_tensor::<i64>()?.1,
            lengths: lengths.try_extract_tensor::<i32>()?.1,
            last: last.try_extract_tensor::<i32>()?.1,
        };
        let values = i64::try_from(heads.queries * heads.size).map_err(|_| missing())?;
        let mut output = context.output(0, [rows, width, values])?.ok_or_else(missing)?;
        let mut keys = context.output(1, &past_shape[..])?.ok_or_else(missing)?;
        let mut key_values = context.output(2, &past_shape[..])?.ok_or_else(missing)?;
        let output = output.try_extract_tensor_mut::<f32>()?.1;
        let keys = keys.try_extract_tensor_mut::<f32>()?.1;
        let key_values = key_values.try_extract_tensor_mut::<f32>()?.1;
        // The decoder binds past and present to the same memory, so that nothing is copied. Other bindings are
        // refused.
        if keys.as_ptr() != past_keys.as_ptr() || key_values.as_ptr() != past_values.as_ptr() {
            return Err(ort::Error::new(
                "past and present keys and values must be the same memory",
            ));
        }
        let slab = KvPointers {
            keys: keys.as_mut_ptr(),
            values: key_values.as_mut_ptr(),
            room: size_of(room)?,
        };
        if keys.len() != inputs.lengths.len() * heads.keys * slab.room * heads.size
            || key_values.len() != keys.len()
        {
            return Err(missing());
        }
        let pool = || self.scratch.lock();
        let mut scratch = pool().pop().unwrap_or_default();
        // SAFETY: graphs with the operator are opened only where the processor has what it needs; the slab is of this
        // size, and one run at a time uses it.
        let outcome = unsafe {
            attend(
                heads,
                &inputs,
                slab,
                output,
                &mut scratch,
                &SessionThreads(context),
            )
        };
        pool().push(scratch);
        outcome.map_err(ort::Error::new)
    }
}
