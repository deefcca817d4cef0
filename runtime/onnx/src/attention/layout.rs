//! The form of keys and values that the operator reads and writes: blocks of 16 tokens.
//!
//! The KV memory is a tensor `u8 [layers, rows, blocks, heads, bytes]`: a row's blocks follow each other, so that a row of
//! any length is one range of memory a layer. The part of a head in a block:
//!
//! * f32: keys `[size][16 tokens]`, values `[16 tokens][size]`.
//! * 8 bits: keys `[size / 4][16 tokens][4]`, offset by 128; values `[4 groups of 4 tokens][size][4 tokens]`; then scales
//!   in 16-bit floats: of the keys `[parts][16 tokens]`, one for each part of a vector ([`key_part`]), and of the values
//!   `[16 tokens]`. A value is its integer times its scale. Keys and values are transformed before ([`super::hadamard`]).

/// The tokens of a block.
pub(crate) const BLOCK_TOKENS: usize = 16;

/// The number of tokens that share a step of the online softmax. Spans that rows share end at multiples of it, so that the
/// order of all operations is the same whether tokens are shared or not.
pub(crate) const TILE_TOKENS: usize = 64;
pub(crate) const TILE_BLOCKS: usize = TILE_TOKENS / BLOCK_TOKENS;

/// The offset of 8-bit keys as they are stored, for one factor of a dot product is unsigned.
pub(crate) const KEY_OFFSET: i32 = 128;

/// The values of the largest head.
pub(crate) const MAX_SIZE: usize = 128;

/// The values of a key that share a scale, and that the Walsh-Hadamard transform mixes: 32, or 16 where 32 does not divide
/// the head.
pub(crate) const fn key_part(size: usize) -> usize {
    if size.is_multiple_of(32) { 32 } else { 16 }
}

/// The element type of keys and values in the blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum BlockElement {
    F32,
    I8,
}

impl BlockElement {
    /// The bytes of a head in a block.
    pub(crate) const fn head_bytes(self, size: usize) -> usize {
        match self {
            Self::F32 => 2 * BLOCK_TOKENS * size * 4,
            Self::I8 => {
                let scales = size / key_part(size) + 1;
                (2 * BLOCK_TOKENS * size + scales * BLOCK_TOKENS * 2).next_multiple_of(64)
            }
        }
    }

    /// The element whose heads of `size` take `bytes` in a block.
    pub(crate) fn of_bytes(bytes: usize, size: usize) -> Option<Self> {
        [Self::F32, Self::I8]
            .into_iter()
            .find(|element| element.head_bytes(size) == bytes)
    }

    /// Where the values of a head begin in its part of a block.
    pub(crate) const fn values_offset(self, size: usize) -> usize {
        match self {
            Self::F32 => BLOCK_TOKENS * size * 4,
            Self::I8 => BLOCK_TOKENS * size,
        }
    }
}

/// The KV memory of one layer: `[rows, blocks, heads, head_bytes]`.
#[derive(Clone, Copy)]
pub(crate) struct LayerBlocks {
    pub(crate) base: *mut u8,
    pub(crate) rows: usize,
    /// Blocks of a row.
    pub(crate) blocks: usize,
    pub(crate) heads: usize,
    pub(crate) head_bytes: usize,
}

// SAFETY: what is written through it is divided among the threads by the pieces of work.
unsafe impl Send for LayerBlocks {}
// SAFETY: as above.
unsafe impl Sync for LayerBlocks {}

impl LayerBlocks {
    /// Tokens that a row has room for.
    pub(crate) fn room(&self) -> usize {
        self.blocks * BLOCK_TOKENS
    }

    /// The bytes from a head's part of a block to that of the next block.
    pub(crate) fn stride(&self) -> usize {
        self.heads * self.head_bytes
    }

    /// A head's part of a row's block.
    pub(crate) fn head(&self, row: usize, block: usize, head: usize) -> *mut u8 {
        self.base
            .wrapping_add((row * self.blocks + block) * self.stride() + head * self.head_bytes)
    }
}

/// The rows of a run: where each has its tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RowTable {
    /// The KV row of each.
    pub(crate) own: Vec<usize>,
    /// Its tokens that other rows hold: `(row, end)`, by ascending ends.
    pub(crate) shared: Vec<Vec<(usize, usize)>>,
}

impl RowTable {
    /// Reads the operator's input `[rows, columns]`: the KV row of each, then pairs of another row and the end of what it
    /// holds of this one, up to an end of 0.
    ///
    /// # Errors
    /// The table names what is not there; one line.
    pub(crate) fn read(table: &[i32], rows: usize, kv_rows: usize) -> Result<Self, String> {
        let columns = table.len().checked_div(rows).unwrap_or(0);
        if columns == 0 || columns.is_multiple_of(2) || columns * rows != table.len() {
            return Err(format!("a table of {} for {rows} rows", table.len()));
        }
        let (mut own, mut shared) = (Vec::with_capacity(rows), Vec::with_capacity(rows));
        for line in table.chunks_exact(columns) {
            let known = |row: i32| {
                usize::try_from(row)
                    .ok()
                    .filter(|row| *row < kv_rows)
                    .ok_or_else(|| format!("row {row} of a slab of {kv_rows}"))
            };
            let mut spans: Vec<(usize, usize)> = Vec::new();
            for pair in line[1..].chunks_exact(2).take_while(|pair| pair[1] != 0) {
                let end = usize::try_from(pair[1]).unwrap_or(0);
                let start = spans.last().map_or(0, |span| span.1);
                if end <= start || end % TILE_TOKENS != 0 {
                    return Err(format!("a shared span of tokens {start}..{}", pair[1]));
                }
                spans.push((known(pair[0])?, end));
            }
            own.push(known(line[0])?);
            shared.push(spans);
        }
        Ok(Self { own, shared })
    }

    /// The first token that the row holds itself.
    pub(crate) fn own_from(&self, row: usize) -> usize {
        self.shared[row].last().map_or(0, |span| span.1)
    }
}
