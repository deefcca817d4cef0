//! The KV memory of a decoder.

use ort::memory::AllocationDevice;
use phi_edge_engine::KvType;
use phi_edge_models::GenaiConfig;

use super::config::DecoderConfig;
use crate::attention::layout::{BLOCK_TOKENS, BlockElement};
use crate::error::OnnxError;
use crate::kv::{BlocksShape, KvBlocks, KvMemory, KvShape, KvSlab};
use crate::provider::{Provider, input_device};
use crate::raw::Element;
use crate::session::{GraphKv, OpenGraph};

/// The KV memory on a device if none is configured.
const DEVICE_KV_BYTES: u64 = 4 << 30;

/// The most rows that only cache prefixes, on a device.
const DEVICE_CACHE_ROWS: usize = 8;

/// Reserves the KV memory on the host or on the provider's device; each provider but the processor has one.
pub(super) fn reserve(
    graph: &OpenGraph,
    kv_type: KvType,
    genai: &GenaiConfig,
    config: &DecoderConfig,
) -> Result<KvMemory, OnnxError> {
    match graph.kv {
        GraphKv::Blocks => blocks(kv_type, genai, config).map(KvMemory::Blocks),
        GraphKv::Tensors(element) => slab(graph, element, genai, config).map(KvMemory::Slab),
    }
}

fn blocks(kv_type: KvType, genai: &GenaiConfig, config: &DecoderConfig) -> Result<KvBlocks, OnnxError> {
    let mut shape = BlocksShape {
        layers: genai.num_layers,
        rows: config.rows.max(1) + config.cache_rows,
        heads: genai.num_kv_heads,
        head_size: genai.head_size,
        // One more than the context, as of the slab.
        capacity: genai.context_length + 1,
        element: match kv_type {
            KvType::I8 => BlockElement::I8,
            KvType::F32 | KvType::F16 => BlockElement::F32,
        },
    };
    if let Some(budget) = config.kv_memory {
        // The host allocates what is written, and the engine keeps the sum below the budget: one row may have it all.
        let tokens = budget.saturating_sub(shape.page_overhead()) / shape.bytes_per_token().max(1) as u64;
        let tokens = usize::try_from(tokens).unwrap_or(usize::MAX) / BLOCK_TOKENS * BLOCK_TOKENS;
        shape.capacity = shape.capacity.min(tokens).max(2);
    }
    KvBlocks::reserve(shape)
}

fn slab(
    graph: &OpenGraph,
    element: Element,
    genai: &GenaiConfig,
    config: &DecoderConfig,
) -> Result<KvSlab, OnnxError> {
    let device = device(graph, genai)?;
    let on_host = device.is_none();
    let mut shape = KvShape {
        layers: genai.num_layers,
        rows: config.rows.max(1)
            + if on_host {
                config.cache_rows
            } else {
                config.cache_rows.min(DEVICE_CACHE_ROWS)
            },
        heads: genai.num_kv_heads,
        // One more than the context: a pad token may stand behind the last one.
        capacity: genai.context_length + 1,
        head_size: genai.head_size,
        element,
    };
    let most = config.provider_settings.device_memory.unwrap_or(DEVICE_KV_BYTES);
    let budget = config
        .kv_memory
        .or((!on_host).then_some(DEVICE_KV_BYTES.min(most)));
    if let Some(budget) = budget {
        // The host allocates what is written, and the engine keeps the sum below the budget: one row may have it all.
        // A device allocates all rows at once.
        let (rows, lost) = if on_host {
            (1, shape.page_overhead())
        } else {
            (shape.rows, 0)
        };
        let tokens = budget.saturating_sub(lost) / (shape.bytes_per_token() * rows).max(1) as u64;
        shape.capacity = shape
            .capacity
            .min(usize::try_from(tokens).unwrap_or(usize::MAX))
            .max(2);
    }
    match device {
        Some(device) => KvSlab::on_device(shape, &graph.session, device),
        None => KvSlab::on_host(shape),
    }
}

/// The device that the graph takes keys and values on; `None`: the host.
fn device(graph: &OpenGraph, genai: &GenaiConfig) -> Result<Option<AllocationDevice<'static>>, OnnxError> {
    match graph.provider {
        Provider::Auto | Provider::Cpu => Ok(None),
        Provider::Cuda => Ok(Some(AllocationDevice::CUDA)),
        Provider::DirectMl => Ok(Some(AllocationDevice::DIRECTML)),
        // Their buffers are handles, in which a row has no address of its own.
        Provider::WebGpu | Provider::Plugin => match input_device(&graph.session, &genai.past_key(0)) {
            Ok(name) if AllocationDevice::CPU == *name => Ok(None),
            Ok(name) | Err(name) => Err(OnnxError::ProviderUnavailable {
                provider: graph.provider.as_str(),
                fault: format!("keys and values can't be held in its memory ({name}) yet"),
                advice: "Take a provider that computes attention on the processor".to_owned(),
            }),
        },
    }
}
