//! The KV memory of a decoder.

use ort::memory::AllocationDevice;
use phi_edge_engine::KvType;
use phi_edge_models::GenaiConfig;

use super::config::DecoderConfig;
use super::device_share::{block_tokens, device_bytes, shape_in_pages, shape_in_tensors, shortened};
use crate::attention::layout::{BLOCK_TOKENS, BlockElement};
use crate::error::OnnxError;
use crate::kv::{BlocksShape, DevicePlace, DeviceRows, KvBlocks, KvMemory, KvShape, KvSlab, PagedRows};
use crate::provider::{ExecutionTarget, Provider, input_device};
use crate::raw::Element;
use crate::session::{GraphKv, OpenGraph};

/// Reserves the KV memory on the host or on the provider's device.
pub(super) fn reserve(
    graph: &OpenGraph,
    kv_type: KvType,
    genai: &GenaiConfig,
    config: &DecoderConfig,
) -> Result<KvMemory, OnnxError> {
    match graph.kv {
        GraphKv::Blocks => blocks(kv_type, genai, config).map(KvMemory::Blocks),
        GraphKv::Tensors(element) if is_on_host(graph, genai) && !config.device_rows => {
            slab(element, genai, config).map(KvMemory::Slab)
        }
        GraphKv::Paged(element) => {
            paged(graph, element, genai, config).map(|rows| KvMemory::Paged(Box::new(rows)))
        }
        GraphKv::Tensors(element) => {
            device(graph, element, genai, config).map(|rows| KvMemory::Device(Box::new(rows)))
        }
    }
}

/// Whether the provider takes keys and values in the host's memory. Of plugins, those that compute on the processor do.
fn is_on_host(graph: &OpenGraph, genai: &GenaiConfig) -> bool {
    match graph.provider {
        Provider::Auto | Provider::Cpu => true,
        Provider::Cuda | Provider::DirectMl | Provider::WebGpu => false,
        Provider::Plugin => input_device(&graph.session, &genai.past_key(0))
            .is_ok_and(|device| AllocationDevice::CPU == *device),
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
        shape.capacity = shortened(shape.capacity, tokens);
    }
    KvBlocks::reserve(shape)
}

fn slab(element: Element, genai: &GenaiConfig, config: &DecoderConfig) -> Result<KvSlab, OnnxError> {
    let mut shape = shape(element, genai, config);
    if let Some(budget) = config.kv_memory {
        // The host allocates what is written, and the engine keeps the sum below the budget: one row may have it all.
        let tokens = budget.saturating_sub(shape.page_overhead()) / shape.bytes_per_token().max(1) as u64;
        shape.capacity = shortened(shape.capacity, usize::try_from(tokens).unwrap_or(usize::MAX));
    }
    KvSlab::on_host(shape)
}

fn device(
    graph: &OpenGraph,
    element: Element,
    genai: &GenaiConfig,
    config: &DecoderConfig,
) -> Result<DeviceRows, OnnxError> {
    let mut shape = shape(element, genai, config);
    // The trial of the provider's runs takes two (`run_limits.rs`).
    shape.rows = shape.rows.max(2);
    let memory = device_bytes(graph.provider, config);
    let shape = shape_in_tensors(shape, memory);
    DeviceRows::new(shape, memory, &place(graph, &genai.past_key(0), config))
}

fn paged(
    graph: &OpenGraph,
    element: Element,
    genai: &GenaiConfig,
    config: &DecoderConfig,
) -> Result<PagedRows, OnnxError> {
    let shape = shape(element, genai, config);
    let tokens = config.paged_stand_in.map(|stand_in| stand_in.block_tokens);
    let tokens = tokens.unwrap_or_else(|| block_tokens(genai.head_size));
    let paged = shape_in_pages(shape, tokens, device_bytes(graph.provider, config));
    PagedRows::new(paged, &place(graph, &genai.past_key(0), config))
}

fn place<'a>(graph: &'a OpenGraph, input: &'a str, config: &'a DecoderConfig) -> DevicePlace<'a> {
    DevicePlace {
        library: &graph.library,
        target: ExecutionTarget {
            provider: graph.provider,
            settings: &config.provider_settings,
        },
        session: &graph.session,
        input,
    }
}

/// Rows of the model's context.
fn shape(element: Element, genai: &GenaiConfig, config: &DecoderConfig) -> KvShape {
    KvShape {
        layers: genai.num_layers,
        rows: config.rows.max(1) + config.cache_rows,
        heads: genai.num_kv_heads,
        // One more than the context: a pad token may stand behind the last one.
        capacity: genai.context_length + 1,
        head_size: genai.head_size,
        element,
    }
}
