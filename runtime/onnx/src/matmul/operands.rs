//! The operands of the matmul's kernels.

use crate::matmul::{GROUPS, LANES};

/// The bytes of a register of 512 bits, and of a cache line.
pub(super) const LINE_BYTES: usize = LANES * 4;

/// The width of a packed weight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum WeightBits {
    /// Four bits: a word of eight weights is one line of a group's columns.
    Four,
    /// Eight bits: a word of eight weights is two lines, the even ones first.
    Eight,
}

impl WeightBits {
    /// Lines of a word.
    pub(crate) fn lines(self) -> usize {
        match self {
            Self::Four => 1,
            Self::Eight => 2,
        }
    }

    /// The stored value of the weight 0 where a matrix has no zero points: a power of two.
    pub(crate) const fn zero(self) -> u8 {
        match self {
            Self::Four => 8,
            Self::Eight => 128,
        }
    }
}

/// The destination of one row of a panel. A panel is a few rows that go through the matmul together.
pub(crate) struct PanelRow {
    /// The panel's values: by word, the even values of each row, then the odd ones, four bytes a row.
    pub(crate) quants: *mut i32,
    /// The panel's scales, by block and row.
    pub(crate) scales: *mut f32,
    /// The panel's negated sums of a block's values, by block and row.
    pub(crate) sums: *mut i32,
    /// Rows of the panel.
    pub(crate) rows: usize,
    /// The row within it.
    pub(crate) row: usize,
}

/// The operands of a tile and its destination: a run of blocks, one behind the other.
pub(crate) struct Tile {
    /// The first block's words and scales ([`crate::matmul::pack::PackedWeights`]), at a cache line's begin.
    pub(crate) weights: *const u8,
    /// The first block's zero points, and how many bytes later the next block's stand; 0 where all are the stored value of the
    /// weight 0 ([`WeightBits::zero`]).
    pub(crate) zeros: *const u8,
    pub(crate) zeros_step: usize,
    pub(crate) blocks: usize,
    /// Words of a block.
    pub(crate) words: usize,
    /// The panel at the first block ([`PanelRow`]).
    pub(crate) quants: *const i32,
    pub(crate) scales: *const f32,
    pub(crate) sums: *const i32,
    /// The tile's upper left corner in the output, whose rows are `stride` values apart.
    pub(crate) out: *mut f32,
    pub(crate) stride: usize,
    /// The mask of the last group's columns.
    pub(crate) mask: u16,
    /// Whether the result is added to the output.
    pub(crate) add: bool,
    /// The prefetch distance in bytes, and the groups that are prefetched.
    pub(crate) ahead: usize,
    pub(crate) fetch: [bool; GROUPS],
}

/// The dimensions of a tile.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TileForm {
    /// Rows of the panel, at most [`max_panel_rows`](crate::matmul::kernels::MatMulKernels::max_panel_rows).
    pub(crate) rows: usize,
    /// Groups of columns, at most [`GROUPS`].
    pub(crate) groups: usize,
    pub(crate) bits: WeightBits,
}

/// Up to 16 columns of words of four bytes, one column behind the other.
#[derive(Debug, Clone, Copy)]
pub(crate) struct WordColumns {
    pub(crate) first: *const i32,
    pub(crate) columns: usize,
    /// Words of a column.
    pub(crate) length: usize,
}

/// Sixteen words side by side: one of each column.
pub(crate) type WordLine = [i32; LANES];
