//! The memory that keys and values get on a device, and the context that follows from it.

use super::config::DecoderConfig;
use crate::kv::{DeviceRows, KvFootprint, KvShape, PagedShape};
use crate::provider::{CardMemory, Provider, card_memory};

/// What keys and values get where neither the configuration nor the device says how much there is.
const UNKNOWN_DEVICE_BYTES: u64 = 4 << 30;
/// What is left to a provider's work space: a part of the device's memory, at least this much.
const MIN_WORK_BYTES: u64 = 1 << 30;
const WORK_PARTS: u64 = 16;

/// The bytes for keys and values on a device: those of the configuration, else what CUDA's device has free once the model is loaded,
/// less work space, else 4 GiB.
pub(super) fn device_bytes(provider: Provider, config: &DecoderConfig) -> u64 {
    let settings = &config.provider_settings;
    if let Some(configured) = settings.device_memory.or(config.kv_memory) {
        return configured;
    }
    let card = match provider {
        Provider::Cuda => card_memory(settings.device_id.unwrap_or(0)),
        _ => None,
    };
    let Some(card) = card else {
        return UNKNOWN_DEVICE_BYTES;
    };
    let bytes = share(card);
    tracing::info!(
        total = card.total,
        free = card.free,
        bytes,
        "Keys and values get what the device has free, less work space (runtime.device_memory)."
    );
    bytes
}

/// The share of keys and values of a device's free memory.
fn share(card: CardMemory) -> u64 {
    let work = (card.total / WORK_PARTS).max(MIN_WORK_BYTES);
    // A device that has less left is full: what little is tried then fails when it is allocated, with an error that says so.
    card.free.saturating_sub(work).max(card.free / 4)
}

/// The shape of rows in tensors that share `memory` bytes, of which one row may have all.
pub(super) fn shape_in_tensors(mut shape: KvShape, memory: u64) -> KvShape {
    let longest = KvFootprint::on_device(&shape).largest_row(DeviceRows::budget(&shape, memory));
    shape.capacity = shortened(shape.capacity, longest);
    shape
}

/// The pool of blocks of `block_tokens` tokens that `memory` bytes hold, and no more than the rows can fill.
pub(super) fn shape_in_pages(mut shape: KvShape, block_tokens: usize, memory: u64) -> PagedShape {
    let block_bytes = (block_tokens * shape.bytes_per_token()).max(1) as u64;
    let budget = usize::try_from(memory / block_bytes).unwrap_or(usize::MAX);
    let most = shape.capacity.div_ceil(block_tokens).saturating_mul(shape.rows);
    let blocks = budget.min(most).max(1);
    shape.capacity = shortened(shape.capacity, blocks * block_tokens);
    PagedShape {
        rows: shape,
        block_tokens,
        blocks,
    }
}

/// The tokens of a block where ONNX Runtime's `PagedAttention` runs: what its fastest kernel reads at once.
pub(super) fn block_tokens(head_size: usize) -> usize {
    if head_size <= 64 { 256 } else { 128 }
}

/// A capacity of at most `longest` tokens. Two tokens are the least that a row can have.
pub(super) fn shortened(capacity: usize, longest: usize) -> usize {
    capacity.min(longest).max(2)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::raw::Element;

    const MIB: u64 = 1 << 20;

    /// What CUDA, its libraries and the weights of Phi-3.5-mini take in 4 bits: the figure of docs/gpu.md.
    const LOADED: u64 = 3 << 30;

    /// The memory that the driver reports of common cards, in MiB, by their memory in GB.
    const CARDS: [(u64, u64); 6] = [
        (8, 8_188),
        (12, 12_282),
        (16, 15_360),
        (24, 23_034),
        (48, 46_068),
        (80, 81_559),
    ];

    /// Rows of Phi-3.5-mini with keys and values of 16 bits.
    fn mini(rows: usize) -> KvShape {
        KvShape {
            layers: 32,
            rows,
            heads: 32,
            capacity: 131_073,
            head_size: 96,
            element: Element::F16,
        }
    }

    fn loaded(mib: u64) -> CardMemory {
        CardMemory {
            total: mib * MIB,
            free: mib * MIB - LOADED,
        }
    }

    /// The longest text in blocks and in tensors on a card.
    fn contexts(mib: u64) -> [usize; 2] {
        let memory = share(loaded(mib));
        let pages = shape_in_pages(mini(12), block_tokens(96), memory);
        [pages.rows.capacity, shape_in_tensors(mini(12), memory).capacity].map(|tokens| tokens - 1)
    }

    #[test]
    fn a_card_of_24_gb_holds_32k_tokens_by_default() {
        for (gb, mib) in CARDS.into_iter().filter(|(gb, _)| *gb >= 24) {
            assert!(contexts(mib).iter().all(|tokens| *tokens >= 32_768), "{gb} GB");
        }
    }

    #[test]
    fn the_table_of_cards_in_the_documentation_is_right() {
        let document = include_str!("../../../../docs/gpu.md");
        for (gb, mib) in CARDS {
            let [pages, tensors] = contexts(mib);
            let memory = share(loaded(mib));
            let pool = shape_in_pages(mini(12), block_tokens(96), memory);
            // Rows of 4,096 tokens that run at once, prompt and answer together.
            let rows = pool.blocks / 4096_usize.div_ceil(pool.block_tokens);
            let grouped = |tokens: usize| format!("{},{:03}", tokens / 1000, tokens % 1000);
            let row = format!(
                "| {gb} GB | {},{:03} MiB | {:.1} GiB | {} | {} | {rows} |",
                mib / 1000,
                mib % 1000,
                tenths(memory),
                grouped(pages),
                grouped(tensors),
            );
            assert!(document.contains(&row), "docs/gpu.md needs this line: {row}");
        }
    }

    /// GiB with one decimal, rounded down.
    fn tenths(bytes: u64) -> f64 {
        let tenths = u32::try_from((bytes * 10) >> 30).unwrap_or(u32::MAX);
        f64::from(tenths) / 10.0
    }

    #[test]
    fn work_space_is_left_free_and_a_full_card_gives_little() {
        let card = |total: u64, free: u64| CardMemory {
            total: total << 30,
            free: free << 30,
        };
        assert_eq!(share(card(8, 5)), 4 << 30);
        assert_eq!(share(card(80, 70)), 65 << 30);
        assert_eq!(share(card(24, 1)), 1 << 28);
        assert_eq!(share(card(24, 0)), 0);
    }

    #[test]
    fn what_is_configured_counts() {
        let mut config = DecoderConfig::default();
        assert_eq!(device_bytes(Provider::WebGpu, &config), UNKNOWN_DEVICE_BYTES);
        config.kv_memory = Some(7);
        assert_eq!(device_bytes(Provider::Cuda, &config), 7);
        config.provider_settings.device_memory = Some(9);
        assert_eq!(device_bytes(Provider::Cuda, &config), 9);
    }

    #[test]
    fn a_pool_has_no_more_blocks_than_its_rows_fill() {
        let pool = shape_in_pages(mini(1), 128, u64::MAX);
        assert_eq!((pool.blocks, pool.rows.capacity), (1025, 131_073));
        let least = shape_in_pages(mini(1), 128, 0);
        assert_eq!((least.blocks, least.rows.capacity), (1, 128));
    }
}
