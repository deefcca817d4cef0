//! The KV memory: keys and values of all rows, in one of four forms.

mod block_tables;
mod blocks;
mod device_rows;
mod footprint;
mod kv_error;
mod mapping;
mod paged_rows;
mod row_gather;
mod row_groups;
#[cfg(test)]
mod row_schedule;
mod tensors;

use std::ops::Range;

use crate::attention::layout::{BlockElement, TILE_TOKENS};

pub(crate) use blocks::{BlocksShape, KvBlocks};
pub(crate) use device_rows::{DevicePlace, DeviceRows};
pub use footprint::KvFootprint;
pub(crate) use kv_error::KvError;
pub(crate) use paged_rows::{PagedRows, PagedShape};
pub(crate) use row_groups::GroupId;
pub(crate) use tensors::{KvShape, KvSlab, Side};

/// The KV memory of a decoder.
pub(crate) enum KvMemory {
    /// As the tensors of the exporter's graph, on the host.
    Slab(KvSlab),
    /// In blocks of the custom operator.
    Blocks(KvBlocks),
    /// As the tensors of the exporter's graph, in allocations of the execution provider.
    Device(Box<DeviceRows>),
    /// In a pool of blocks in an allocation of the execution provider.
    Paged(Box<PagedRows>),
}

impl KvMemory {
    pub(crate) fn rows(&self) -> usize {
        match self {
            Self::Slab(slab) => slab.shape().rows,
            Self::Blocks(blocks) => blocks.shape().rows,
            Self::Device(device) => device.shape().rows,
            Self::Paged(paged) => paged.shape().rows.rows,
        }
    }

    /// Tokens that a row has room for.
    pub(crate) fn capacity(&self) -> usize {
        match self {
            Self::Slab(slab) => slab.shape().capacity,
            Self::Blocks(blocks) => blocks.shape().capacity,
            Self::Device(device) => device.shape().capacity,
            Self::Paged(paged) => paged.shape().rows.capacity,
        }
    }

    /// The most tokens of a sequence: the model's context, or less where the memory is less.
    pub(crate) fn context(&self, model: usize) -> usize {
        model.min(self.capacity() - 1)
    }

    /// The bytes of a token, in a row that is read.
    pub(crate) fn bytes_per_token(&self) -> usize {
        match self {
            Self::Slab(slab) => slab.shape().bytes_per_token(),
            Self::Blocks(blocks) => blocks.shape().bytes_per_token(),
            Self::Device(device) => device.shape().bytes_per_token(),
            Self::Paged(paged) => paged.shape().rows.bytes_per_token(),
        }
    }

    /// The footprint of the type in use.
    pub(crate) fn footprint(&self) -> KvFootprint {
        match self {
            Self::Slab(slab) => KvFootprint::of_tensors(slab.shape()),
            Self::Blocks(blocks) => KvFootprint::of_blocks(blocks.shape()),
            Self::Device(device) => KvFootprint::on_device(device.shape()),
            Self::Paged(paged) => KvFootprint::in_pages(&paged.shape().rows, paged.shape().block_tokens),
        }
    }

    /// The footprint of the graph's own type, and that of 8 bits, of rows of these dimensions.
    pub(crate) fn footprints(&self) -> [KvFootprint; 2] {
        let of_tensors = |shape: &KvShape, element| BlocksShape {
            layers: shape.layers,
            rows: shape.rows,
            heads: shape.heads,
            head_size: shape.head_size,
            capacity: shape.capacity,
            element,
        };
        let blocks = |element| match self {
            Self::Slab(slab) => of_tensors(slab.shape(), element),
            Self::Device(device) => of_tensors(device.shape(), element),
            Self::Paged(paged) => of_tensors(&paged.shape().rows, element),
            Self::Blocks(blocks) => BlocksShape {
                element,
                ..*blocks.shape()
            },
        };
        let float = match self {
            Self::Blocks(_) => KvFootprint::of_blocks(&blocks(BlockElement::F32)),
            Self::Slab(_) | Self::Device(_) | Self::Paged(_) => self.footprint(),
        };
        [float, KvFootprint::of_blocks(&blocks(BlockElement::I8))]
    }

    /// Rows may take tokens from each other, in spans that end at multiples of this.
    pub(crate) fn share_granularity(&self) -> Option<usize> {
        match self {
            Self::Slab(_) | Self::Device(_) | Self::Paged(_) => None,
            Self::Blocks(_) => Some(TILE_TOKENS),
        }
    }

    /// Whether the rows of a run must be neighbours.
    pub(crate) fn wants_neighbours(&self) -> bool {
        matches!(self, Self::Slab(_))
    }

    /// Makes room for `len` tokens of a row. On the host rows are reserved whole: the system allocates a page when it is
    /// written.
    pub(crate) fn ensure(&mut self, row: usize, len: usize) -> Result<(), KvError> {
        match self {
            Self::Slab(_) | Self::Blocks(_) => Ok(()),
            Self::Device(device) => device.ensure(row, len),
            Self::Paged(paged) => paged.ensure(row, len),
        }
    }

    /// Copies `tokens` of one row to the same places of another.
    pub(crate) fn copy(&mut self, from: usize, to: usize, tokens: &Range<usize>) -> Result<(), KvError> {
        match self {
            Self::Slab(slab) => slab.copy(from, to, tokens),
            Self::Blocks(blocks) => blocks.copy(from, to, tokens),
            Self::Device(device) => return device.copy(from, to, tokens),
            Self::Paged(paged) => return paged.copy(from, to, tokens),
        }
        Ok(())
    }

    /// Gives the memory after the first `len` tokens of a row back.
    pub(crate) fn shrink(&mut self, row: usize, len: usize) {
        match self {
            Self::Slab(slab) => slab.shrink(row, len),
            Self::Blocks(blocks) => blocks.shrink(row, len),
            Self::Device(device) => device.truncate(row, len),
            Self::Paged(paged) => paged.truncate(row, len),
        }
    }

    /// Appends the first `len` tokens of a row to `out`.
    pub(crate) fn read(&mut self, row: usize, len: usize, out: &mut Vec<u8>) -> Result<(), KvError> {
        match self {
            Self::Slab(slab) => slab.read(row, len, out),
            Self::Blocks(blocks) => blocks.read(row, len, out),
            Self::Device(device) => return device.read(row, len, out),
            Self::Paged(paged) => return paged.read(row, len, out),
        }
        Ok(())
    }

    /// Writes what [`KvMemory::read`] returned. `bytes` must be exactly that long.
    pub(crate) fn write(&mut self, row: usize, len: usize, bytes: &[u8]) -> Result<(), KvError> {
        match self {
            Self::Slab(slab) => slab.write(row, len, bytes).map_err(KvError::Failed),
            Self::Blocks(blocks) => blocks.write(row, len, bytes).map_err(KvError::Failed),
            Self::Device(device) => device.write(row, len, bytes),
            Self::Paged(paged) => paged.write(row, len, bytes),
        }
    }
}
