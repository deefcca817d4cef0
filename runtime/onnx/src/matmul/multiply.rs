//! The multiplication of rows with packed weights: quantised once, then tile by tile.

use crate::matmul::kernels::MatMulKernels;
use crate::matmul::operands::{PanelRow, Tile, TileForm};
use crate::matmul::pack::{MatrixShape, PackedWeights};
use crate::matmul::{GROUPS, LANES};
use crate::workers::{SharedPointer, Workers};

/// The values along `k` that are computed for all rows before the next ones, for weights whose words are one line: a tile's
/// weights of that many stay in the second cache (96 KiB), from which they come in time. With fewer the output is read and
/// written more often, which costs more than the first cache gives.
const CHUNK_VALUES: usize = 4096;
/// The prefetch distance in bytes where the weights are read only once.
const PREFETCH_BYTES: usize = 4096;

/// Buffers for the quantised rows, kept from one matmul to the next.
#[derive(Default)]
pub(crate) struct RowScratch {
    /// Four values each.
    quants: Vec<i32>,
    scales: Vec<f32>,
    sums: Vec<i32>,
}

impl RowScratch {
    /// Places for `rows` rows of matrices of this shape.
    pub(crate) fn places(&mut self, rows: usize, shape: MatrixShape) -> RowPlaces {
        let (blocks, words) = (shape.blocks(), shape.blocks() * shape.block / 4);
        grow(&mut self.quants, rows * words);
        grow(&mut self.scales, rows * blocks);
        grow(&mut self.sums, rows * blocks);
        RowPlaces {
            quants: SharedPointer(self.quants.as_mut_ptr()),
            scales: SharedPointer(self.scales.as_mut_ptr()),
            sums: SharedPointer(self.sums.as_mut_ptr()),
            blocks,
            words,
        }
    }
}

/// Places for quantised rows, panel behind panel.
#[derive(Clone, Copy)]
pub(crate) struct RowPlaces {
    quants: SharedPointer<i32>,
    scales: SharedPointer<f32>,
    sums: SharedPointer<i32>,
    /// Blocks of a row.
    blocks: usize,
    /// Words of four values of a row.
    words: usize,
}

impl RowPlaces {
    /// The places from that of row `first` on, where a panel begins.
    pub(crate) fn from(self, first: usize) -> Self {
        Self {
            quants: SharedPointer(self.quants.at(first * self.words)),
            scales: SharedPointer(self.scales.at(first * self.blocks)),
            sums: SharedPointer(self.sums.at(first * self.blocks)),
            ..self
        }
    }

    /// The place of row `row` of the panel of `rows` rows at the beginning.
    pub(crate) fn panel_row(self, row: usize, rows: usize) -> PanelRow {
        PanelRow {
            quants: self.quants.at(0),
            scales: self.scales.at(0),
            sums: self.sums.at(0),
            rows,
            row,
        }
    }
}

/// Computes `out[rows, n] = input[rows, k] * weights[k, n]`.
pub(crate) fn multiply(
    packed: &PackedWeights,
    input: &[f32],
    out: &mut [f32],
    scratch: &mut RowScratch,
    workers: &impl Workers,
) -> Result<(), String> {
    let shape = packed.shape;
    let rows = input.len() / shape.k;
    if input.len() != rows * shape.k || out.len() != rows * shape.n {
        return Err(format!(
            "{} values in and {} out do not fit a matrix of {} times {}",
            input.len(),
            out.len(),
            shape.k,
            shape.n
        ));
    }
    let places = scratch.places(rows, shape);
    let height = panel_height(packed.kernels, rows);
    let panel = |panel: usize| {
        let first = panel * height;
        let count = height.min(rows - first);
        for row in 0..count {
            let place = places.from(first).panel_row(row, count);
            let values = &input[(first + row) * shape.k..][..shape.k];
            // SAFETY: weights are packed only where the processor has what this needs. Each panel is written by one
            // piece of work, and the scratch has room for all.
            unsafe { (packed.kernels.quantise)(values, shape.block, &place) };
        }
    };
    let panels = rows.div_ceil(height);
    // A few rows are quantised sooner than another thread wakes up.
    if panels <= 2 {
        (0..panels).for_each(panel);
    } else {
        workers.each(panels, panel)?;
    }
    let out = SharedPointer(out.as_mut_ptr());
    workers.each(shape.tiles(), |tile| {
        // SAFETY: as for the panels; each tile of columns is written by one piece of work; the rows are only read by now.
        unsafe { columns(packed, places, rows, tile, out.at(0)) };
    })
}

/// The rows of a panel, where there are `rows` in all. A few go through the weights together, once: that costs less
/// than to unpack them twice. More are divided evenly, into panels whose sums leave the registers less often.
pub(crate) fn panel_height(kernels: &MatMulKernels, rows: usize) -> usize {
    if rows <= kernels.max_panel_rows {
        rows.max(1)
    } else {
        kernels.panel_rows
    }
}

fn grow<T: Clone + Default>(buffer: &mut Vec<T>, length: usize) {
    if buffer.len() < length {
        buffer.resize(length, T::default());
    }
}

/// Computes one tile of columns for all rows.
///
/// # Safety
/// As for [`MatMulKernels::tile`]: `places` have `rows` rows in panels of [`panel_height`], quantised for `packed`, and `out`
/// takes `rows` times `n` values.
pub(crate) unsafe fn columns(
    packed: &PackedWeights,
    places: RowPlaces,
    rows: usize,
    tile: usize,
    out: *mut f32,
) {
    let shape = packed.shape;
    let (blocks, groups) = (shape.blocks(), shape.groups(tile));
    let block_bytes = shape.block_bytes(groups);
    let height = panel_height(packed.kernels, rows);
    let panels = rows.div_ceil(height);
    let step = if panels == 1 {
        blocks
    } else {
        (CHUNK_VALUES / shape.bits.lines() / shape.block).max(1)
    };
    let columns = shape.n - tile * GROUPS * LANES;
    let mask = match columns % LANES {
        rest if rest != 0 && columns < GROUPS * LANES => (1u16 << rest) - 1,
        _ => 0xffff,
    };
    let tile_start = tile * blocks * shape.block_bytes(GROUPS);
    let zeros_step = if packed.symmetric { 0 } else { groups * LANES };
    let zeros_start = if packed.symmetric {
        0
    } else {
        tile * blocks * GROUPS * LANES
    };
    for block in (0..blocks).step_by(step) {
        for panel in 0..panels {
            let first = panel * height;
            let count = height.min(rows - first);
            // The panels share the fetching of the next chunk.
            let fetch = std::array::from_fn(|group| panels == 1 || group % panels == panel);
            let operands = Tile {
                weights: packed.data[tile_start + block * block_bytes..].as_ptr(),
                zeros: packed.zeros[zeros_start + block * zeros_step..].as_ptr(),
                zeros_step,
                blocks: step.min(blocks - block),
                words: shape.words(),
                quants: places
                    .quants
                    .at((first * blocks + block * count) * (shape.block / 4)),
                scales: places.scales.at(first * blocks + block * count),
                sums: places.sums.at(first * blocks + block * count),
                out: out.wrapping_add(first * shape.n + tile * GROUPS * LANES),
                stride: shape.n,
                mask,
                add: block > 0,
                ahead: if panels == 1 {
                    PREFETCH_BYTES
                } else {
                    step * block_bytes
                },
                fetch,
            };
            // SAFETY: the operands are those of this tile, as the caller guarantees.
            unsafe {
                let bits = shape.bits;
                (packed.kernels.tile)(
                    TileForm {
                        rows: count,
                        groups,
                        bits,
                    },
                    &operands,
                );
            }
        }
    }
}
