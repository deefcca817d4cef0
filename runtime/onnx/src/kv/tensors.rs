//! The KV slab: keys and values of all rows as the tensors of the exporter's graph, one region a layer and side.
//!
//! Layout of a region: `[rows, heads, capacity, head_size]`, so that one row is a `[1, H, C, D]` tensor and
//! neighbouring rows are a `[B, H, C, D]` one, both without copying. The whole slab is reserved as address space of the
//! host and takes memory only where tokens were written.

use std::ops::Range;

use ort::memory::MemoryInfo;

use super::mapping::{Mapping, page_size, reserve_rows};
use crate::error::OnnxError;
use crate::raw::{Element, View};

/// The slab's dimensions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct KvShape {
    pub(crate) layers: usize,
    pub(crate) rows: usize,
    pub(crate) heads: usize,
    /// Tokens a row can hold.
    pub(crate) capacity: usize,
    pub(crate) head_size: usize,
    pub(crate) element: Element,
}

impl KvShape {
    pub(crate) fn bytes_per_token(&self) -> usize {
        2 * self.layers * self.heads * self.head_size * self.element.bytes()
    }

    /// The most bytes that whole pages add to a row: each of its segments, one a layer, side and head, ends within one.
    pub(crate) fn page_overhead(&self) -> u64 {
        (2 * self.layers * self.heads * page_size()) as u64
    }

    fn token_bytes(&self) -> usize {
        self.head_size * self.element.bytes()
    }

    fn head_bytes(&self) -> usize {
        self.capacity * self.token_bytes()
    }

    fn row_bytes(&self) -> usize {
        self.heads * self.head_bytes()
    }

    fn region_bytes(&self) -> usize {
        self.rows * self.row_bytes()
    }
}

/// Keys or values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    Key,
    Value,
}

/// The KV memory of all rows.
pub(crate) struct KvSlab {
    shape: KvShape,
    mapping: Mapping,
    info: MemoryInfo<'static>,
}

// SAFETY: the slab owns its memory and is used by one thread at a time (`&mut self` for every write).
unsafe impl Send for KvSlab {}

impl KvSlab {
    /// Reserves a slab in the host's address space.
    pub(crate) fn on_host(shape: KvShape) -> Result<Self, OnnxError> {
        let bytes = shape.region_bytes().checked_mul(2 * shape.layers);
        let (mapping, info) = reserve_rows(bytes, shape.rows, shape.capacity)?;
        Ok(Self { shape, mapping, info })
    }

    /// The slab's dimensions.
    pub(crate) fn shape(&self) -> &KvShape {
        &self.shape
    }

    /// Returns rows `first..first + count` of one layer and side as a `[count, H, C, D]` tensor. It must be dropped
    /// before the slab.
    pub(crate) fn view(&self, layer: usize, side: Side, first: usize, count: usize) -> Result<View, String> {
        let shape = &self.shape;
        if first + count > shape.rows || layer >= shape.layers {
            return Err(format!(
                "rows {first}..{} are outside the KV slab of {}",
                first + count,
                shape.rows
            ));
        }
        let dims = [count, shape.heads, shape.capacity, shape.head_size]
            .map(|d| i64::try_from(d).unwrap_or(i64::MAX));
        // SAFETY: the rows lie within the region by the check above; writes during a run come from that
        // run alone, since the decoder is borrowed mutably for it.
        unsafe {
            View::new(
                &self.info,
                self.row(layer, side, first).cast(),
                &dims,
                shape.element,
            )
        }
    }

    /// Copies `tokens` of one row to the same places of another.
    pub(crate) fn copy(&mut self, from: usize, to: usize, tokens: &Range<usize>) {
        if from == to {
            return;
        }
        let bytes = tokens.len() * self.shape.token_bytes();
        let start = tokens.start * self.shape.token_bytes();
        for (layer, side) in self.regions() {
            for head in 0..self.shape.heads {
                let offset = head * self.shape.head_bytes() + start;
                // SAFETY: both segments lie within their rows (`tokens` end at the capacity or before: checked by
                // the caller) and two rows never overlap.
                unsafe {
                    let source = self.row(layer, side, from).add(offset);
                    let target = self.row(layer, side, to).add(offset);
                    std::ptr::copy_nonoverlapping(source, target, bytes);
                }
            }
        }
    }

    /// Gives the memory after the first `len` tokens of a row back to the system.
    pub(crate) fn shrink(&mut self, row: usize, len: usize) {
        let base = self.mapping.base();
        for (layer, side) in self.regions() {
            let start = self.row(layer, side, row) as usize - base as usize;
            if len == 0 {
                // The whole row is one run of bytes: one call instead of one a head.
                self.mapping.give_back(start, self.shape.row_bytes());
                continue;
            }
            for head in 0..self.shape.heads {
                let kept = len * self.shape.token_bytes();
                self.mapping.give_back(
                    start + head * self.shape.head_bytes() + kept,
                    self.shape.head_bytes() - kept,
                );
            }
        }
    }

    /// Appends the first `len` tokens of a row to `out`: layer by layer, keys then values, head by head.
    pub(crate) fn read(&self, row: usize, len: usize, out: &mut Vec<u8>) {
        for (layer, side) in self.regions() {
            for head in 0..self.shape.heads {
                // SAFETY: the segment lies within the row and was reserved; unwritten pages read as zeros.
                let segment = unsafe {
                    let start = self.row(layer, side, row).add(head * self.shape.head_bytes());
                    std::slice::from_raw_parts(start, len * self.shape.token_bytes())
                };
                out.extend_from_slice(segment);
            }
        }
    }

    /// Writes what [`KvSlab::read`] returned. `bytes` must be exactly that long.
    pub(crate) fn write(&mut self, row: usize, len: usize, bytes: &[u8]) -> Result<(), String> {
        let segment = len * self.shape.token_bytes();
        if segment == 0 || bytes.len() != segment * self.shape.heads * 2 * self.shape.layers {
            return Err("the saved keys and values have another size than this model's".into());
        }
        let mut segments = bytes.chunks_exact(segment);
        for (layer, side) in self.regions() {
            for head in 0..self.shape.heads {
                let Some(source) = segments.next() else { break };
                // SAFETY: the target lies within the row; the source is a slice of the same length.
                unsafe {
                    let target = self.row(layer, side, row).add(head * self.shape.head_bytes());
                    std::ptr::copy_nonoverlapping(source.as_ptr(), target, segment);
                }
            }
        }
        Ok(())
    }

    fn regions(&self) -> impl Iterator<Item = (usize, Side)> + use<> {
        (0..self.shape.layers).flat_map(|layer| [(layer, Side::Key), (layer, Side::Value)])
    }

    /// The address of a row in a region; `row` may be one past the last.
    fn row(&self, layer: usize, side: Side, row: usize) -> *mut u8 {
        let region = 2 * layer + usize::from(side == Side::Value);
        let offset = row * self.shape.row_bytes();
        // SAFETY: the mapping has `2 * layers` regions of `rows` rows.
        unsafe {
            self.mapping
                .base()
                .add(region * self.shape.region_bytes() + offset)
        }
    }
}
