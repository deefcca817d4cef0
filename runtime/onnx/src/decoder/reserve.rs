//! The KV memory of a decoder.

use ort::memory::AllocationDevice;
use phi_edge_models::GenaiConfig;

use super::config::DecoderConfig;
use crate::error::OnnxError;
use crate::kv::{KvShape, KvSlab};
use crate::provider::Provider;
use crate::session::OpenGraph;

/// The KV memory on a device if none is configured.
const DEVICE_KV_BYTES: u64 = 4 << 30;

/// The most rows that only cache prefixes, on a device.
const DEVICE_CACHE_ROWS: usize = 8;

/// Reserves the KV memory on the host or on the provider's device; each provider but the processor has one.
pub(super) fn reserve(
    graph: &OpenGraph,
    genai: &GenaiConfig,
    config: &DecoderConfig,
) -> Result<KvSlab, OnnxError> {
    let mut shape = KvShape {
        layers: genai.num_layers,
        rows: config.rows.max(1)
            + if graph.provider == Provider::Cpu {
                config.cache_rows
            } else {
                config.cache_rows.min(DEVICE_CACHE_ROWS)
            },
        heads: genai.num_kv_heads,
        // One more than the context: a pad token may stand behind the last one.
        capacity: genai.context_length + 1,
        head_size: genai.head_size,
        element: graph.kv_element,
    };
    let on_host = graph.provider == Provider::Cpu;
    let budget = config.kv_memory.or((!on_host).then_some(DEVICE_KV_BYTES));
    if let Some(budget) = budget {
        // The host allocates what is written, and the engine keeps the sum below the budget: one row may have it all.
        // A device allocates all rows at once.
        let rows = if on_host { 1 } else { shape.rows };
        let tokens = budget / (shape.bytes_per_token() * rows).max(1) as u64;
        shape.capacity = shape
            .capacity
            .min(usize::try_from(tokens).unwrap_or(usize::MAX))
            .max(2);
    }
    if on_host {
        return KvSlab::on_host(shape);
    }
    let device = if graph.provider == Provider::Cuda {
        AllocationDevice::CUDA
    } else {
        AllocationDevice::DIRECTML
    };
    KvSlab::on_device(shape, &graph.session, device)
}
