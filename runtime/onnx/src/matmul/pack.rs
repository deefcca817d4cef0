//! Weights as the product reads them: one stream a tile of columns, in the order of the arithmetic.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

use crate::matmul::{GROUPS, LANES};

/// What a matrix looks like in the graph.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Shape {
    /// Values of a row of the input.
    pub(crate) k: usize,
    /// Columns of the output.
    pub(crate) n: usize,
    /// Values along `k` that share a scale: a power of two from 16 to 256.
    pub(crate) block: usize,
}

impl Shape {
    /// Blocks of a column; the last may be longer than what `k` leaves for it.
    pub(crate) fn blocks(&self) -> usize {
        self.k.div_ceil(self.block)
    }

    /// Words of a block: eight values of four bits each.
    pub(crate) fn words(&self) -> usize {
        self.block / 8
    }

    /// Tiles of columns.
    pub(crate) fn tiles(&self) -> usize {
        self.n.div_ceil(GROUPS * LANES)
    }

    /// Groups of columns that tile `tile` has.
    pub(crate) fn groups(&self, tile: usize) -> usize {
        GROUPS.min(self.n.div_ceil(LANES) - tile * GROUPS)
    }

    /// Bytes of a block of a tile with `groups` groups: the words, then the scales.
    pub(crate) fn block_bytes(&self, groups: usize) -> usize {
        groups * (self.words() + 1) * LANES * 4
    }
}

/// `MatMulNBits`' inputs as they stand in the file.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Source<'a> {
    /// `[n, blocks, block / 2]`, the value of the lower index in the low four bits.
    pub(crate) weights: &'a [u8],
    /// `[n, blocks]`.
    pub(crate) scales: &'a [f32],
    /// `[n, blocks / 2, rounded up]`, the lower index in the low four bits; 8 everywhere if absent.
    pub(crate) zeros: Option<&'a [u8]>,
}

/// The weights of one matrix.
///
/// By tile, then by block, then by word: the words of eight values of each column, one column behind the other, as in the
/// file. Behind a block's words stand its scales. So a tile is read from one end to the other.
pub(crate) struct Packed {
    pub(crate) shape: Shape,
    pub(crate) data: Aligned,
    /// A byte a column, in the same order; the columns of one block alone where all zero points are 8.
    pub(crate) zeros: Vec<u8>,
    pub(crate) symmetric: bool,
}

impl Packed {
    /// Packs on `threads` threads. The error says what does not fit.
    pub(crate) fn new(shape: Shape, source: Source<'_>, threads: usize) -> Result<Self, String> {
        let Shape { k, n, block } = shape;
        let blocks = shape.blocks();
        if k == 0 || n == 0 || !block.is_power_of_two() || !(16..=256).contains(&block) {
            return Err(format!(
                "a matrix of {k} times {n} in blocks of {block} is not supported"
            ));
        }
        let sizes = [source.weights.len(), source.scales.len()];
        if sizes != [n * blocks * block / 2, n * blocks]
            || source
                .zeros
                .is_some_and(|zeros| zeros.len() != n * blocks.div_ceil(2))
        {
            return Err(format!(
                "weights and scales of sizes {sizes:?} do not fit {k} times {n} in blocks of {block}"
            ));
        }
        let tile_bytes = blocks * shape.block_bytes(GROUPS);
        let last = shape.tiles() - 1;
        let mut data = Aligned::new(last * tile_bytes + blocks * shape.block_bytes(shape.groups(last)));
        let mut tiles: Vec<(usize, &mut [u8])> = data.chunks_mut(tile_bytes).enumerate().collect();
        let each = tiles.len().div_ceil(threads.max(1));
        std::thread::scope(|scope| {
            let mut shares = tiles.chunks_mut(each);
            let own = shares.next();
            for share in shares {
                scope.spawn(|| pack_tiles(shape, source, share));
            }
            pack_tiles(shape, source, own.unwrap_or_default());
        });
        let zeros = source.zeros.map(|zeros| pack_zeros(shape, zeros));
        Ok(Self {
            shape,
            data,
            symmetric: zeros.is_none(),
            zeros: zeros.unwrap_or_else(|| vec![8; GROUPS * LANES]),
        })
    }
}

fn pack_tiles(shape: Shape, source: Source<'_>, tiles: &mut [(usize, &mut [u8])]) {
    let (blocks, words) = (shape.blocks(), shape.words());
    let column_bytes = blocks * shape.block / 2;
    for (tile, data) in tiles {
        let groups = shape.groups(*tile);
        let first = *tile * GROUPS * LANES;
        let columns = (shape.n - first).min(groups * LANES);
        let weights = &source.weights[first * column_bytes..][..columns * column_bytes];
        let block_bytes = shape.block_bytes(groups);
        for (block, data) in data.chunks_exact_mut(block_bytes).enumerate() {
            let (packed, scales) = data.split_at_mut(words * groups * LANES * 4);
            // Column by column: rows of the source lie so far apart that few of their lines share the cache.
            for (column, weights) in weights.chunks_exact(column_bytes).enumerate() {
                let block_of = &weights[block * words * 4..][..words * 4];
                for (word, values) in block_of.chunks_exact(4).enumerate() {
                    let at = (word * groups * LANES + column) * 4;
                    packed[at..at + 4].copy_from_slice(values);
                }
            }
            for (column, packed) in scales.chunks_exact_mut(4).take(columns).enumerate() {
                let scale = source.scales[(first + column) * blocks + block];
                packed.copy_from_slice(&scale.to_ne_bytes());
            }
        }
    }
}

fn pack_zeros(shape: Shape, zeros: &[u8]) -> Vec<u8> {
    let blocks = shape.blocks();
    let mut packed = Vec::with_capacity(shape.n.next_multiple_of(LANES) * blocks);
    for tile in 0..shape.tiles() {
        let first = tile * GROUPS * LANES;
        for block in 0..blocks {
            packed.extend((first..first + shape.groups(tile) * LANES).map(|column| {
                let pair = zeros.get(column * blocks.div_ceil(2) + block / 2);
                let pair = pair.copied().unwrap_or_default();
                if block % 2 == 0 { pair & 15 } else { pair >> 4 }
            }));
        }
    }
    packed
}

/// Bytes that begin at a cache line's begin, as aligned loads want it.
pub(crate) struct Aligned {
    start: NonNull<u8>,
    layout: Layout,
}

// SAFETY: it owns its memory alone, as a `Vec` does.
unsafe impl Send for Aligned {}
// SAFETY: shared, it is only read.
unsafe impl Sync for Aligned {}

impl Aligned {
    const LINE: usize = 64;

    fn new(bytes: usize) -> Self {
        let layout = Layout::from_size_align(bytes.max(1), Self::LINE)
            .expect("weights in memory are smaller than half of it");
        // SAFETY: the layout is not empty.
        let start =
            NonNull::new(unsafe { alloc_zeroed(layout) }).unwrap_or_else(|| handle_alloc_error(layout));
        Self { start, layout }
    }
}

impl Deref for Aligned {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: allocated with this size, zeroed, and not written while it is borrowed.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.layout.size()) }
    }
}

impl DerefMut for Aligned {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as for `deref`, and borrowed by nobody else.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.layout.size()) }
    }
}

impl Drop for Aligned {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with this layout, and given back once.
        unsafe { dealloc(self.start.as_ptr(), self.layout) }
    }
}
