//! The lines of packed weights that a kernel of narrow registers reads for one group of columns.

use crate::matmul::operands::{LINE_BYTES, Tile};
use crate::prefetch::prefetch;

/// The words of one group in a block.
pub(super) struct GroupWords {
    /// The first line; the next one of the group is `stride` bytes further.
    first: *const u8,
    stride: usize,
    /// Words of eight values.
    pub(super) count: usize,
    /// The panel's values at the block.
    pub(super) quants: *const i32,
    /// The prefetch distance in bytes; `None`: other groups or panels prefetch.
    ahead: Option<usize>,
}

impl GroupWords {
    /// The words of group `group` of `GROUPS` in the block of `tile` whose weights and values begin at `weights` and `quants`.
    #[inline(always)]
    pub(super) fn of<const GROUPS: usize>(
        tile: &Tile,
        group: usize,
        weights: *const u8,
        quants: *const i32,
    ) -> Self {
        Self {
            first: weights.wrapping_add(group * LINE_BYTES),
            stride: GROUPS * LINE_BYTES,
            count: tile.words,
            quants,
            ahead: tile.fetch[group].then_some(tile.ahead),
        }
    }

    /// The place of a line.
    #[inline(always)]
    pub(super) fn line(&self, line: usize) -> *const u8 {
        self.first.wrapping_add(line * self.stride)
    }

    /// Prefetches what lies `ahead` of a line.
    #[inline(always)]
    pub(super) fn prefetch(&self, line: usize) {
        if let Some(ahead) = self.ahead {
            prefetch(self.line(line).wrapping_add(ahead));
        }
    }
}
