//! The KV memory in a pool of blocks on a device, for attention by `PagedAttention`: one tensor `[blocks, tokens of a block, heads,
//! head_size]` a layer and side, allocated at once from the execution provider's own allocator. Which row has which blocks is in
//! [`super::block_tables`]; blocks are copied by the provider ([`super::row_gather`]).
//!
//! The device's buffers must be addresses, so that a block can be named within the pool: they are on CUDA and on the processor.

use std::ops::Range;
use std::sync::Arc;

use ort::memory::MemoryInfo;

use super::block_tables::{BlockId, BlockTables};
use super::device_rows::DevicePlace;
use super::kv_error::KvError;
use super::row_gather::{GatherSource, RowGather};
use super::tensors::KvShape;
use crate::device_memory::{DeviceAllocator, DeviceBuffer};
use crate::error::OnnxError;
use crate::raw::{self, View};

/// What is left to the provider's own buffers when the pool takes all that a device has: one part of this many.
const RESERVE_PARTS: usize = 16;
/// The steps in which a pool that can't be allocated is made smaller: parts of the whole.
const POOL_PARTS: usize = 8;

/// The dimensions of the pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PagedShape {
    /// Of the rows; the capacity is that of the longest row.
    pub(crate) rows: KvShape,
    /// Tokens of a block: a power of two.
    pub(crate) block_tokens: usize,
    /// Blocks of the pool.
    pub(crate) blocks: usize,
}

impl PagedShape {
    /// The bytes of a block in one tensor of the pool.
    fn block_bytes(&self) -> usize {
        self.block_tokens * self.rows.heads * self.rows.head_size * self.rows.element.bytes()
    }

    /// The bytes of the whole pool.
    fn bytes(&self) -> u64 {
        self.blocks as u64 * (self.block_tokens * self.rows.bytes_per_token()) as u64
    }
}

/// The keys and values of all rows.
pub(crate) struct PagedRows {
    shape: PagedShape,
    tables: BlockTables,
    /// Keys and values of each layer in turn.
    pool: Vec<DeviceBuffer>,
    gather: RowGather,
    host: MemoryInfo<'static>,
    /// A block on the host, which is copied from and to the device. In words, so that it is aligned for all elements.
    staging: Vec<u64>,
}

impl PagedRows {
    /// A pool of at most `shape.blocks` blocks, or as many as the device has memory for.
    pub(crate) fn new(mut shape: PagedShape, place: &DevicePlace<'_>) -> Result<Self, OnnxError> {
        let fault = |fault: String| OnnxError::KvMemory {
            rows: shape.rows.rows,
            context: shape.rows.capacity,
            fault,
        };
        let allocator = DeviceAllocator::of_input(place.session, place.input).map_err(fault)?;
        let device = allocator.device().map_err(fault)?;
        let (pool, blocks) = allocate(&shape, &allocator).map_err(fault)?;
        if blocks < shape.blocks {
            tracing::info!(
                blocks,
                wanted = shape.blocks,
                "The device has memory for fewer blocks of keys and values."
            );
        }
        shape.blocks = blocks;
        shape.rows.capacity = shape.rows.capacity.min(blocks * shape.block_tokens);
        tracing::debug!(
            device,
            blocks,
            block_tokens = shape.block_tokens,
            bytes = shape.bytes(),
            "Keys and values are in blocks in the memory of the provider's device."
        );
        Ok(Self {
            tables: BlockTables::new(
                shape.rows.rows,
                BlockId::try_from(blocks).unwrap_or(BlockId::MAX),
                shape.block_tokens,
            ),
            pool,
            gather: RowGather::new(place.library, place.target, shape.rows.element)?,
            host: raw::host_memory()?,
            staging: vec![0; shape.block_bytes().div_ceil(8)],
            shape,
        })
    }

    /// The dimensions.
    pub(crate) fn shape(&self) -> &PagedShape {
        &self.shape
    }

    /// The bytes that the rows may take together.
    pub(crate) fn bytes(&self) -> u64 {
        self.shape.bytes()
    }

    /// A tensor of the pool: keys and values of each layer in turn. It must be dropped before the pool.
    pub(crate) fn view(&self, index: usize) -> Result<View, String> {
        let shape = &self.shape;
        let dims = [
            shape.blocks,
            shape.block_tokens,
            shape.rows.heads,
            shape.rows.head_size,
        ]
        .map(to_i64);
        let tensor = self.pool.get(index).ok_or("a layer that is not in the pool")?;
        tensor.view(&dims, shape.rows.element)
    }

    /// The blocks of a row, in the order of its tokens.
    pub(crate) fn blocks(&self, row: usize) -> &[BlockId] {
        self.tables.blocks(row)
    }

    /// Makes room for `tokens` tokens of a row.
    pub(crate) fn ensure(&mut self, row: usize, tokens: usize) -> Result<(), KvError> {
        self.tables
            .reserve(row, tokens)
            .map_err(|_| self.no_memory(tokens))
    }

    /// Prepares a row for a run that writes its tokens `start..end`.
    pub(crate) fn prepare_write(&mut self, row: usize, start: usize, end: usize) -> Result<(), KvError> {
        if start > self.tables.tokens(row) {
            return Err(KvError::Failed(format!("row {row} does not hold {start} tokens")));
        }
        let copy = self
            .tables
            .write(row, start, end)
            .map_err(|_| self.no_memory(end - start))?;
        let Some(copy) = copy else { return Ok(()) };
        for index in 0..self.pool.len() {
            let outcome = self.copy_block(index, copy.from, copy.to, copy.tokens);
            self.overwritten(row, outcome)?;
        }
        Ok(())
    }

    /// Copies the first `tokens` of one row to another, by reference.
    pub(crate) fn copy(&mut self, from: usize, to: usize, tokens: &Range<usize>) -> Result<(), KvError> {
        if tokens.start != 0 {
            return Err(KvError::Failed(
                "a copy that does not begin at a row's first token".into(),
            ));
        }
        if tokens.end > self.tables.tokens(from) {
            return Err(KvError::Failed(format!(
                "row {from} does not hold {} tokens",
                tokens.end
            )));
        }
        if from != to && !tokens.is_empty() {
            self.tables.share(from, to, tokens.end);
        }
        Ok(())
    }

    /// Discards what a row holds after its first `tokens`.
    pub(crate) fn truncate(&mut self, row: usize, tokens: usize) {
        self.tables.truncate(row, tokens);
    }

    /// Appends the first `tokens` of a row to `out`: layer by layer, keys then values, token by token.
    pub(crate) fn read(&mut self, row: usize, tokens: usize, out: &mut Vec<u8>) -> Result<(), KvError> {
        if tokens == 0 || tokens > self.tables.tokens(row) {
            return Err(KvError::Failed(format!(
                "row {row} does not hold {tokens} tokens"
            )));
        }
        let blocks = self.tables.blocks(row).to_vec();
        for index in 0..self.pool.len() {
            for (block, tokens) in self.parts(&blocks, tokens) {
                self.read_block(index, block, tokens, out)
                    .map_err(KvError::Failed)?;
            }
        }
        Ok(())
    }

    /// Writes what [`PagedRows::read`] returned. `bytes` must be exactly that long.
    pub(crate) fn write(&mut self, row: usize, tokens: usize, bytes: &[u8]) -> Result<(), KvError> {
        let token_bytes = self.shape.block_bytes() / self.shape.block_tokens;
        if tokens == 0 || bytes.len() != tokens * token_bytes * self.pool.len() {
            return Err(KvError::Failed(
                "the saved keys and values have another size than this model's".into(),
            ));
        }
        self.tables.truncate(row, 0);
        self.prepare_write(row, 0, tokens)?;
        let blocks = self.tables.blocks(row).to_vec();
        let mut rest = bytes;
        for index in 0..self.pool.len() {
            for (block, tokens) in self.parts(&blocks, tokens) {
                let (these, behind) = rest.split_at(tokens * token_bytes);
                rest = behind;
                let outcome = self.write_block(index, block, tokens, these);
                self.overwritten(row, outcome)?;
            }
        }
        Ok(())
    }

    /// The blocks of a row's first `tokens` tokens, each with the number of these in it.
    fn parts(&self, blocks: &[BlockId], tokens: usize) -> Vec<(BlockId, usize)> {
        let starts = (0..tokens).step_by(self.shape.block_tokens);
        let parts = blocks.iter().zip(starts);
        parts
            .map(|(block, start)| (*block, (tokens - start).min(self.shape.block_tokens)))
            .collect()
    }

    /// Copies the first tokens of a block to another one of the same tensor.
    fn copy_block(&mut self, index: usize, from: BlockId, to: BlockId, tokens: usize) -> Result<(), String> {
        let (from, to) = (self.block(index, from)?, self.block(index, to)?);
        self.gather
            .run(&[source(&from, tokens)], self.shape.block_tokens, &to)
    }

    fn read_block(
        &mut self,
        index: usize,
        block: BlockId,
        tokens: usize,
        out: &mut Vec<u8>,
    ) -> Result<(), String> {
        let (from, to) = (self.block(index, block)?, self.staged()?);
        self.gather
            .run(&[source(&from, tokens)], self.shape.block_tokens, &to)?;
        let bytes = tokens * self.shape.block_bytes() / self.shape.block_tokens;
        out.extend(
            self.staging
                .iter()
                .flat_map(|word| word.to_ne_bytes())
                .take(bytes),
        );
        Ok(())
    }

    fn write_block(
        &mut self,
        index: usize,
        block: BlockId,
        tokens: usize,
        bytes: &[u8],
    ) -> Result<(), String> {
        for (word, bytes) in self.staging.iter_mut().zip(bytes.chunks(8)) {
            let mut whole = [0; 8];
            whole[..bytes.len()].copy_from_slice(bytes);
            *word = u64::from_ne_bytes(whole);
        }
        let (from, to) = (self.staged()?, self.block(index, block)?);
        self.gather
            .run(&[source(&from, tokens)], self.shape.block_tokens, &to)
    }

    /// A block of a tensor of the pool, as a row of one head.
    fn block(&self, index: usize, block: BlockId) -> Result<View, String> {
        let tensor = self.pool.get(index).ok_or("a layer that is not in the pool")?;
        tensor.part(
            block as usize * self.shape.block_bytes(),
            &self.block_dims(),
            self.shape.rows.element,
        )
    }

    /// The staging buffer, likewise.
    fn staged(&mut self) -> Result<View, String> {
        let (dims, data) = (self.block_dims(), self.staging.as_mut_ptr().cast());
        // SAFETY: the buffer has the size of a block, and lives longer than the run that uses the view.
        unsafe { View::new(&self.host, data, &dims, self.shape.rows.element) }
    }

    fn block_dims(&self) -> [i64; 4] {
        let token = self.shape.rows.heads * self.shape.rows.head_size;
        [1, 1, self.shape.block_tokens, token].map(to_i64)
    }

    /// Passes on the outcome of writing to a row; where it is an error, the row is empty.
    fn overwritten(&mut self, row: usize, outcome: Result<(), String>) -> Result<(), KvError> {
        outcome.map_err(|fault| {
            self.tables.truncate(row, 0);
            KvError::Failed(fault)
        })
    }

    fn no_memory(&self, tokens: usize) -> KvError {
        KvError::OutOfMemory(format!(
            "{tokens} tokens more on the device, where rows take {} of {} blocks of {} tokens",
            self.tables.taken(),
            self.shape.blocks,
            self.shape.block_tokens
        ))
    }
}

/// Allocates the tensors of the pool, and returns them with the number of blocks that they have.
fn allocate(
    shape: &PagedShape,
    allocator: &Arc<DeviceAllocator>,
) -> Result<(Vec<DeviceBuffer>, usize), String> {
    let mut outcome = Err("there is no memory for a block".to_owned());
    let mut tried = 0;
    for part in (1..=POOL_PARTS).rev() {
        let blocks = (shape.blocks * part / POOL_PARTS).max(1);
        if blocks == tried {
            continue;
        }
        tried = blocks;
        let bytes = blocks * shape.block_bytes();
        let tensors: Result<Vec<_>, _> = (0..2 * shape.rows.layers)
            .map(|_| allocator.allocate(bytes))
            .collect();
        // The provider's own buffers need memory as well, which runs would not get otherwise.
        let reserve = bytes.saturating_mul(2 * shape.rows.layers) / RESERVE_PARTS;
        outcome = tensors.and_then(|tensors| allocator.allocate(reserve.max(1)).map(|_| (tensors, blocks)));
        if outcome.is_ok() {
            break;
        }
    }
    outcome
}

/// The first tokens of a block as the source of a copy.
fn source(tensor: &View, tokens: usize) -> GatherSource<'_> {
    GatherSource {
        tensor,
        index: 0,
        tokens,
    }
}

fn to_i64(size: usize) -> i64 {
    i64::try_from(size).unwrap_or(i64::MAX)
}
