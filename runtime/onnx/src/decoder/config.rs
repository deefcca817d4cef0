//! How a decoder is set up.

use std::path::PathBuf;

use crate::prepare::Prepare;
use crate::provider::Provider;

/// How a decoder is set up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DecoderConfig {
    /// Where the graph runs.
    pub provider: Provider,
    /// Threads of a run; `None`: all processors this process may use.
    pub threads: Option<usize>,
    /// Rows of the KV slab for sequences that run and for pinned prefixes, at least 1.
    pub rows: usize,
    /// Rows beside them that only remember. On the host they cost address space alone; on a device, which pays for every
    /// row, there are eight at most.
    pub cache_rows: usize,
    /// Upper bound for the KV slab in bytes; shortens the context where it is less than the model's. On
    /// a device, where the slab is allocated whole, `None` means 4 GiB.
    pub kv_memory: Option<u64>,
    /// How far the graph may be edited in memory, where that makes it faster. What does not hold against the plain
    /// graph is left out.
    pub prepare: Prepare,
    /// The file that remembers which edits hold; `None`: they are tried at each load.
    pub edit_cache: Option<PathBuf>,
}

impl Default for DecoderConfig {
    fn default() -> Self {
        Self {
            provider: Provider::Auto,
            threads: None,
            rows: 1,
            cache_rows: 0,
            kv_memory: None,
            prepare: Prepare::ALL,
            edit_cache: None,
        }
    }
}
