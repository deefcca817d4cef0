//! `PagedAttention` on the processor, computed plainly: the stand-in for ONNX Runtime's kernel, which runs on CUDA alone. It holds
//! the caller to the same contract.
#![allow(
    dead_code,
    unreachable_pub,
    clippy::cast_precision_loss,
    clippy::unwrap_used,
    reason = "each test file uses its part of one module"
)]

use half::f16;
use ort::operator::{
    ComputeContext, Kernel, KernelContext, Operator, OperatorDomain, OperatorInput, OperatorOutput,
};
use ort::value::TensorElementType;
use phi_edge_onnx::PagedStandIn;

pub const DOMAIN: &str = "phi_edge.tests";

/// Small blocks, so that short rows have several.
pub const STAND_IN: PagedStandIn = PagedStandIn {
    domain: DOMAIN,
    operators: || OperatorDomain::new(DOMAIN)?.add(PagedAttention { is_wrong: false }),
    block_tokens: 16,
};

/// One that computes wrong: it does not look at the past.
pub const WRONG: PagedStandIn = PagedStandIn {
    domain: "phi_edge.tests.wrong",
    operators: || OperatorDomain::new("phi_edge.tests.wrong")?.add(PagedAttention { is_wrong: true }),
    block_tokens: 16,
};

struct PagedAttention {
    is_wrong: bool,
}

impl Operator for PagedAttention {
    type Kernel<'attr> = PagedKernel;

    fn name(&self) -> &'static str {
        "PagedAttention"
    }

    fn inputs(&self) -> impl IntoIterator<Item = OperatorInput> {
        use TensorElementType::{Float16, Float32, Int32};
        let (one, may) = (OperatorInput::required, OperatorInput::optional);
        [
            one(Float16),
            may(Float16),
            may(Float16),
            one(Float16),
            one(Float16),
            one(Int32),
            one(Int32),
            one(Int32),
            may(Float16),
            may(Float16),
            may(Int32),
            may(Float16),
            may(Float16),
            may(Float16),
            may(Float32),
            may(Float32),
            may(Int32),
        ]
    }

    fn outputs(&self) -> impl IntoIterator<Item = OperatorOutput> {
        [TensorElementType::Float16; 3].map(OperatorOutput::required)
    }

    fn create_kernel(&self, context: &KernelContext<'_>) -> ort::Result<PagedKernel> {
        let int = |name: &str| context.get::<i64>(name);
        let count = |name: &str| usize::try_from(int(name).unwrap_or(0)).unwrap();
        assert_eq!(int("do_rotary"), Some(1));
        assert_eq!(int("rotary_interleaved").unwrap_or(0), 0);
        assert_eq!(int("local_window_size").unwrap_or(-1), -1);
        Ok(PagedKernel {
            queries: count("num_heads"),
            keys: count("kv_num_heads"),
            scale: context.get::<f32>("scale").filter(|scale| *scale != 0.0),
            is_wrong: self.is_wrong,
        })
    }
}

struct PagedKernel {
    queries: usize,
    keys: usize,
    scale: Option<f32>,
    is_wrong: bool,
}

/// The error of a caller that does not keep the contract.
fn held(holds: bool, what: &str) -> ort::Result<()> {
    if holds { Ok(()) } else { Err(ort::Error::new(what)) }
}

fn size(dim: i64) -> usize {
    usize::try_from(dim).unwrap()
}

impl Kernel for PagedKernel {
    fn compute(&mut self, context: &ComputeContext) -> ort::Result<()> {
        let input = |at: usize| {
            context
                .input(at)?
                .ok_or_else(|| ort::Error::new("a tensor is missing"))
        };
        for absent in [1, 2, 10, 11, 12, 13, 14, 15] {
            held(
                context.input(absent)?.is_none(),
                "an input that the stand-in does not know",
            )?;
        }
        let (packed, keys, values) = (input(0)?, input(3)?, input(4)?);
        let (starts, past, table) = (input(5)?, input(6)?, input(7)?);
        let (cosines, sines, bounds) = (input(8)?, input(9)?, input(16)?);
        let (shape, packed) = packed.try_extract_tensor::<f16>()?;
        held(shape.len() == 2, "queries that are not packed")?;
        let tokens = size(shape[0]);
        let head = size(shape[1]) / (self.queries + 2 * self.keys);
        held(head.is_multiple_of(8), "a head that is no multiple of 8")?;
        let (pool, keys) = keys.try_extract_tensor::<f16>()?;
        let &[blocks, block, heads, width] = &pool[..] else {
            return held(false, "a pool without four dimensions");
        };
        let (blocks, block) = (size(blocks), size(block));
        held(block >= 16 && block.is_power_of_two(), "a block of another size")?;
        held(
            (size(heads), size(width)) == (self.keys, head),
            "a pool of other heads",
        )?;
        let values = values.try_extract_tensor::<f16>()?.1;
        let pool = pool.to_vec();
        let pool_output = |at: usize| {
            let output = context.output(at, pool.clone())?;
            output.ok_or_else(|| ort::Error::new("a pool that is no output"))
        };
        let (mut key_output, mut value_output) = (pool_output(1)?, pool_output(2)?);
        let at = [keys.as_ptr(), values.as_ptr()];
        let keys = key_output.try_extract_tensor_mut::<f16>()?.1;
        let values = value_output.try_extract_tensor_mut::<f16>()?.1;
        held(
            at == [keys.as_ptr(), values.as_ptr()],
            "the pool and its output must be the same buffer",
        )?;
        let starts = starts.try_extract_tensor::<i32>()?.1;
        let past = past.try_extract_tensor::<i32>()?.1;
        let (table_shape, table) = table.try_extract_tensor::<i32>()?;
        let columns = size(table_shape[1]);
        let rows = past.len();
        held(rows > 0 && starts.len() == rows + 1, "starts of other rows")?;
        held(size(table_shape[0]) == rows, "a table of other rows")?;
        held(
            starts[0] == 0 && size(starts[rows].into()) == tokens,
            "starts of other tokens",
        )?;
        let bounds = bounds.try_extract_tensor::<i32>()?.1;
        let (rope, cosines) = cosines.try_extract_tensor::<f16>()?;
        let sines = sines.try_extract_tensor::<f16>()?.1;
        let half = size(rope[1]);
        let turn = |vector: &[f16], position: usize| -> Vec<f32> {
            let mut turned: Vec<f32> = vector.iter().map(|value| value.to_f32()).collect();
            for at in 0..half {
                let cosine = cosines[position * half + at].to_f32();
                let sine = sines[position * half + at].to_f32();
                let (a, b) = (turned[at], turned[at + half]);
                turned[at] = a * cosine - b * sine;
                turned[at + half] = b * cosine + a * sine;
            }
            turned
        };
        let scale = self.scale.unwrap_or_else(|| (head as f32).sqrt().recip());
        let all = self.queries + 2 * self.keys;
        let mut result = vec![f16::ZERO; tokens * self.queries * head];
        let mut longest = 0;
        for row in 0..rows {
            let (start, end) = (size(starts[row].into()), size(starts[row + 1].into()));
            let past = size(past[row].into());
            longest = longest.max(past + end - start);
            held(
                end - start <= size(bounds[0].into()),
                "more tokens than the bound",
            )?;
            let slot = |at: usize| -> ort::Result<usize> {
                let id = usize::try_from(table[row * columns + at / block]).unwrap_or(usize::MAX);
                held(at / block < columns && id < blocks, "a token without a block")?;
                Ok((id * block + at % block) * self.keys * head)
            };
            for token in start..end {
                let at = past + token - start;
                let to = slot(at)?;
                for kv in 0..self.keys {
                    let key = (token * all + self.queries + kv) * head;
                    let value = key + self.keys * head;
                    let turned = turn(&packed[key..key + head], at);
                    for (place, turned) in keys[to + kv * head..].iter_mut().zip(turned) {
                        *place = f16::from_f32(turned);
                    }
                    values[to + kv * head..to + (kv + 1) * head]
                        .copy_from_slice(&packed[value..value + head]);
                }
            }
            for token in start..end {
                let at = past + token - start;
                let first = if self.is_wrong { past } else { 0 };
                let slots = (first..=at).map(slot).collect::<ort::Result<Vec<usize>>>()?;
                for query in 0..self.queries {
                    let kv = query * self.keys / self.queries * head;
                    let from = (token * all + query) * head;
                    let turned = turn(&packed[from..from + head], at);
                    let dot = |slot: &usize| -> f32 {
                        let key = &keys[slot + kv..slot + kv + head];
                        key.iter()
                            .zip(&turned)
                            .map(|(key, query)| key.to_f32() * query)
                            .sum::<f32>()
                            * scale
                    };
                    let scores: Vec<f32> = slots.iter().map(dot).collect();
                    let most = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                    let weights: Vec<f32> = scores.iter().map(|score| (score - most).exp()).collect();
                    let sum: f32 = weights.iter().sum();
                    let to = (token * self.queries + query) * head;
                    for at in 0..head {
                        let value = |(slot, weight): (&usize, &f32)| values[slot + kv + at].to_f32() * weight;
                        let mixed: f32 = slots.iter().zip(&weights).map(value).sum();
                        result[to + at] = f16::from_f32(mixed / sum);
                    }
                }
            }
        }
        held(longest <= size(bounds[1].into()), "a longer row than the bound")?;
        held(longest >= size(bounds[2].into()), "a shorter row than the bound")?;
        let shape = [tokens, self.queries * head].map(|dim| i64::try_from(dim).unwrap());
        let output = context.output(0, shape)?;
        let mut output = output.ok_or_else(|| ort::Error::new("no output"))?;
        output.try_extract_tensor_mut::<f16>()?.1.copy_from_slice(&result);
        Ok(())
    }
}
