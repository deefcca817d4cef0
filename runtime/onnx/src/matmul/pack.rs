//! Packed weights: one stream for each tile of columns, in the order of the arithmetic.

use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

use crate::isa::Isa;
use crate::matmul::kernels::MatMulKernels;
use crate::matmul::operands::{LINE_BYTES, WeightBits, WordColumns};
use crate::matmul::{GROUPS, LANES};

/// The dimensions of a matrix in the graph.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct MatrixShape {
    /// Values of a row of the input.
    pub(crate) k: usize,
    /// Columns of the output.
    pub(crate) n: usize,
    /// Values along `k` that share a scale: a power of two from 16 to 256.
    pub(crate) block: usize,
    /// Bits of a weight.
    pub(crate) bits: WeightBits,
}

impl MatrixShape {
    /// Blocks of a column; the last may be longer than what `k` leaves for it.
    pub(crate) fn blocks(&self) -> usize {
        self.k.div_ceil(self.block)
    }

    /// Words of a block: eight values each.
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
        groups * (self.words() * self.bits.lines() + 1) * LINE_BYTES
    }
}

/// `MatMulNBits`' inputs as they stand in the file.
#[derive(Debug, Clone, Copy)]
pub(crate) struct WeightInputs<'a> {
    /// `[n, blocks, block / 2]`, the value of the lower index in the low four bits.
    pub(crate) weights: &'a [u8],
    /// `[n, blocks]`.
    pub(crate) scales: &'a [f32],
    /// `[n, blocks / 2, rounded up]`, the lower index in the low four bits; 8 everywhere if absent.
    pub(crate) zeros: Option<&'a [u8]>,
}

/// The packed weights of one matrix, and the kernels that read them. They exist only on processors that have the kernels'
/// instruction set.
///
/// By tile, then by block, then by word: the words of eight values of each column, one column behind the other, as in the
/// file. Behind a block's words stand its scales. So a tile is read from one end to the other.
pub(crate) struct PackedWeights {
    pub(crate) shape: MatrixShape,
    pub(crate) data: AlignedBytes,
    /// A byte a column, in the same order; the columns of one block alone where all zero points are 8.
    pub(crate) zeros: Vec<u8>,
    pub(crate) symmetric: bool,
    pub(crate) kernels: &'static MatMulKernels,
}

impl PackedWeights {
    /// Packs on `threads` threads, for the kernels of `isa`. The error says what does not fit, or that the processor does not
    /// have the instruction set.
    pub(crate) fn new(
        shape: MatrixShape,
        source: WeightInputs<'_>,
        (isa, threads): (Isa, usize),
    ) -> Result<Self, String> {
        Self::new_with(kernels(isa)?, shape, source, threads)
    }

    /// The same for kernels that this processor can run.
    pub(super) fn new_with(
        kernels: &'static MatMulKernels,
        shape: MatrixShape,
        source: WeightInputs<'_>,
        threads: usize,
    ) -> Result<Self, String> {
        let MatrixShape { k, n, block, bits } = shape;
        if bits != WeightBits::Four
            || k == 0
            || n == 0
            || !block.is_power_of_two()
            || !(16..=256).contains(&block)
        {
            return Err(format!(
                "a matrix of {k} times {n} in blocks of {block} is not supported"
            ));
        }
        let blocks = shape.blocks();
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
        let data = each_tile(shape, threads, |tiles| pack_tiles(kernels, shape, source, tiles));
        let zeros = source.zeros.map(|zeros| pack_zeros(shape, zeros));
        Ok(Self {
            shape,
            data,
            symmetric: zeros.is_none(),
            zeros: zeros.unwrap_or_else(|| vec![shape.bits.zero(); GROUPS * LANES]),
            kernels,
        })
    }
}

/// The kernels of `isa`, where this processor has it.
pub(super) fn kernels(isa: Isa) -> Result<&'static MatMulKernels, String> {
    if isa.is_supported() {
        Ok(MatMulKernels::of(isa))
    } else {
        Err(format!(
            "this processor does not have the instruction set {}",
            isa.as_str()
        ))
    }
}

/// The data of all tiles, written by `pack` on `threads` threads: each call gets some of them with their numbers.
pub(super) fn each_tile(
    shape: MatrixShape,
    threads: usize,
    pack: impl Fn(&mut [(usize, &mut [u8])]) + Sync,
) -> AlignedBytes {
    let blocks = shape.blocks();
    let tile_bytes = blocks * shape.block_bytes(GROUPS);
    let last = shape.tiles() - 1;
    let mut data = AlignedBytes::new(last * tile_bytes + blocks * shape.block_bytes(shape.groups(last)));
    let mut tiles: Vec<(usize, &mut [u8])> = data.chunks_mut(tile_bytes).enumerate().collect();
    let each = tiles.len().div_ceil(threads.max(1));
    std::thread::scope(|scope| {
        let mut shares = tiles.chunks_mut(each);
        let own = shares.next();
        for share in shares {
            scope.spawn(|| pack(share));
        }
        pack(own.unwrap_or_default());
    });
    data
}

fn pack_tiles(
    kernels: &MatMulKernels,
    shape: MatrixShape,
    source: WeightInputs<'_>,
    tiles: &mut [(usize, &mut [u8])],
) {
    let (blocks, words) = (shape.blocks(), shape.words());
    let column_words = blocks * words;
    for (tile, data) in tiles {
        let groups = shape.groups(*tile);
        let block_bytes = shape.block_bytes(groups);
        for group in 0..groups {
            let first = *tile * GROUPS * LANES + group * LANES;
            let columns = LANES.min(shape.n - first);
            let at = group * LINE_BYTES;
            let weights = &source.weights[first * column_words * 4..][..columns * column_words * 4];
            let word_at = |word: usize| word / words * block_bytes + word % words * groups * LINE_BYTES + at;
            let scales = &source.scales[first * blocks..][..columns * blocks];
            let scale_at = |block: usize| block * block_bytes + words * groups * LINE_BYTES + at;
            // SAFETY: the processor can run the kernels. Whole columns lie in the source, by its slices, and the
            // tile's data have room for the words and the scales of each of its blocks.
            unsafe {
                let source = |first, length| WordColumns {
                    first,
                    columns,
                    length,
                };
                lay_out(
                    kernels,
                    source(weights.as_ptr().cast(), column_words),
                    data,
                    word_at,
                );
                lay_out(kernels, source(scales.as_ptr().cast(), blocks), data, scale_at);
            }
        }
    }
}

/// Lays words that stand column behind column side by side: word `index` of all columns to `place(index)` in `data`, with
/// zeros for columns that are not there.
///
/// # Safety
/// As for [`MatMulKernels::transpose`].
unsafe fn lay_out(
    kernels: &MatMulKernels,
    source: WordColumns,
    data: &mut [u8],
    place: impl Fn(usize) -> usize,
) {
    for start in (0..source.length).step_by(LANES) {
        // SAFETY: as the caller guarantees.
        let lines = unsafe { (kernels.transpose)(source, start) };
        for (index, line) in lines.iter().enumerate().take(source.length - start) {
            let to = data[place(start + index)..][..LINE_BYTES].as_chunks_mut::<4>().0;
            for (to, word) in to.iter_mut().zip(line) {
                *to = word.to_ne_bytes();
            }
        }
    }
}

fn pack_zeros(shape: MatrixShape, zeros: &[u8]) -> Vec<u8> {
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

/// Bytes that begin at a cache line, as aligned loads need.
pub(crate) struct AlignedBytes {
    start: NonNull<u8>,
    layout: Layout,
}

// SAFETY: it owns its memory alone, as a `Vec` does.
unsafe impl Send for AlignedBytes {}
// SAFETY: shared, it is only read.
unsafe impl Sync for AlignedBytes {}

/// The size of the processor's large pages, where the kernel gives them to who asks.
const LARGE_PAGE: usize = 2 << 20;

impl AlignedBytes {
    /// Zeros. Those of a large matrix are asked to lie in large pages: they are read from one end to the other, and between
    /// small pages the processor looks up each one and starts prefetching again.
    fn new(bytes: usize) -> Self {
        let large = bytes >= 2 * LARGE_PAGE;
        let layout = Layout::from_size_align(bytes.max(1), if large { LARGE_PAGE } else { LINE_BYTES })
            .expect("weights in memory are smaller than half of it");
        // SAFETY: the layout is not empty.
        let start = NonNull::new(unsafe { alloc(layout) }).unwrap_or_else(|| handle_alloc_error(layout));
        #[cfg(target_os = "linux")]
        if large {
            // Only whole pages of this allocation; a refusal costs speed alone.
            // SAFETY: the range lies within what was just allocated.
            unsafe {
                libc::madvise(
                    start.as_ptr().cast(),
                    bytes / LARGE_PAGE * LARGE_PAGE,
                    libc::MADV_HUGEPAGE,
                );
            }
        }
        // SAFETY: all of it was just allocated.
        unsafe { start.as_ptr().write_bytes(0, layout.size()) };
        Self { start, layout }
    }
}

impl Deref for AlignedBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: allocated with this size, zeroed, and not written while it is borrowed.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.layout.size()) }
    }
}

impl DerefMut for AlignedBytes {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as for `deref`, and borrowed by no other code.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.layout.size()) }
    }
}

impl Drop for AlignedBytes {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with this layout, and given back once.
        unsafe { dealloc(self.start.as_ptr(), self.layout) }
    }
}
