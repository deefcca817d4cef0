//! The configuration of a decoder.

use std::path::PathBuf;

use crate::isa::IsaChoice;
use crate::kv_cache::KvCache;
use crate::paged_stand_in::PagedStandIn;
use crate::prepare::Prepare;
use crate::provider::{Provider, ProviderSettings};
use crate::vision::VisionWeights;

/// The configuration of a decoder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DecoderConfig {
    /// The execution provider.
    pub provider: Provider,
    /// Its settings.
    pub provider_settings: ProviderSettings,
    /// Threads of a run; `None`: all processors this process may use.
    pub threads: Option<usize>,
    /// Rows of the KV slab for sequences that run and for pinned prefixes, at least 1.
    pub rows: usize,
    /// Rows beside them that only cache prefixes. Without tokens they cost address space alone.
    pub cache_rows: usize,
    /// The requested type of keys and values. [`KvCache::I8`] fails the load where 8 bits are not possible.
    pub kv_cache: KvCache,
    /// Upper bound for keys and values on the host in bytes; shortens the context where it is less than the model's.
    pub kv_memory: Option<u64>,
    /// Keeps keys and values in allocations of the provider, as on a device, on the processor too: for tests. The custom operator
    /// for attention is then left out.
    pub device_rows: bool,
    /// What computes `PagedAttention` on the processor, so that the model can be paged there: for tests.
    pub paged_stand_in: Option<PagedStandIn>,
    /// The edits of the graph that are allowed, where they make it faster. Edits that fail verification against the
    /// plain graph are left out.
    pub prepare: Prepare,
    /// The instruction set of the custom operators' kernels.
    pub isa: IsaChoice,
    /// The file of the edit cache; `None`: edits are verified at each load.
    pub edit_cache: Option<PathBuf>,
    /// The form of the image encoder's weights, in models that have one.
    pub vision_weights: VisionWeights,
}

impl Default for DecoderConfig {
    fn default() -> Self {
        Self {
            provider: Provider::Auto,
            provider_settings: ProviderSettings::default(),
            threads: None,
            rows: 1,
            cache_rows: 0,
            kv_cache: KvCache::Auto,
            kv_memory: None,
            device_rows: false,
            paged_stand_in: None,
            prepare: Prepare::ALL_WITH_EXPERTS,
            isa: IsaChoice::Auto,
            edit_cache: None,
            vision_weights: VisionWeights::Auto,
        }
    }
}
