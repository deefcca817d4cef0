//! The matmul's kernels without vector instructions: the reference of all others.

use crate::matmul::LANES;
use crate::matmul::operands::{LINE_BYTES, PanelRow, Tile, TileForm, WeightBits, WordColumns, WordLine};
use crate::mul_add::mul_add;

/// Values of a word.
const WORD: usize = 8;

/// Quantises one row.
///
/// # Safety
/// As for [`MatMulKernels::quantise`](crate::matmul::kernels::MatMulKernels::quantise).
pub(super) unsafe fn quantise(row: &[f32], block: usize, place: &PanelRow) {
    for index in 0..row.len().div_ceil(block) {
        let values = &row[index * block..row.len().min((index + 1) * block)];
        // Magnitudes compare as whole numbers do, and NaN is the largest of them: so it isn't lost.
        let magnitudes = values.iter().map(|value| value.abs().to_bits());
        let largest = f32::from_bits(magnitudes.max().unwrap_or(0));
        let inverse = if largest == 0.0 { 0.0 } else { 127.0 / largest };
        let mut sum = 0i32;
        for word in 0..block / WORD {
            let mut halves = [[0i8; WORD / 2]; 2];
            for at in 0..WORD {
                let value = values.get(word * WORD + at).copied().unwrap_or(0.0);
                #[allow(
                    clippy::cast_possible_truncation,
                    reason = "127 at most; what is no number becomes 0"
                )]
                let whole = (value * inverse).round_ties_even() as i8;
                halves[at % 2][at / 2] = whole;
                sum += i32::from(whole);
            }
            for (half, bytes) in halves.into_iter().enumerate() {
                let at = ((index * block / WORD + word) * 2 + half) * place.rows + place.row;
                let bytes = i32::from_ne_bytes(bytes.map(i8::cast_unsigned));
                // SAFETY: the panel has room for whole blocks of this row, as the caller guarantees.
                unsafe { place.quants.add(at).write(bytes) };
            }
        }
        let at = index * place.rows + place.row;
        // SAFETY: as above.
        unsafe {
            place.scales.add(at).write(largest / 127.0);
            place.sums.add(at).write(-sum);
        }
    }
}

/// Computes a tile of any form.
///
/// # Safety
/// As for [`MatMulKernels::tile`](crate::matmul::kernels::MatMulKernels::tile).
pub(super) unsafe fn tile(form: TileForm, tile: &Tile) {
    let TileForm { rows, groups, bits } = form;
    let block_bytes = groups * (tile.words * bits.lines() + 1) * LINE_BYTES;
    for row in 0..rows {
        for column in
            (0..groups * LANES).filter(|at| at / LANES + 1 < groups || is_set(tile.mask, at % LANES))
        {
            let out = tile.out.wrapping_add(row * tile.stride + column);
            // SAFETY: the fields of `tile` point to `tile.blocks` blocks of `tile.words` words each, and to the output.
            unsafe {
                let mut sum = if tile.add { *out } else { 0.0 };
                for block in 0..tile.blocks {
                    let weights = tile.weights.add(block * block_bytes);
                    let zero = i32::from(*tile.zeros.add(block * tile.zeros_step + column));
                    let mut whole = zero * *tile.sums.add(block * rows + row);
                    for word in 0..tile.words {
                        let quants = tile.quants.add((block * tile.words + word) * 2 * rows + row);
                        let line = |line: usize| -> [u8; 4] {
                            let line = (word * bits.lines() + line) * groups * LINE_BYTES;
                            weights.add(line + column * 4).cast::<[u8; 4]>().read()
                        };
                        let halves = match bits {
                            WeightBits::Four => {
                                [line(0).map(|byte| byte & 15), line(0).map(|byte| byte >> 4)]
                            }
                            WeightBits::Eight => [line(0), line(1)],
                        };
                        for (half, weights) in halves.into_iter().enumerate() {
                            let quants = quants.add(half * rows).read().to_ne_bytes();
                            for (weight, quant) in weights.into_iter().zip(quants) {
                                whole += i32::from(weight) * i32::from(quant.cast_signed());
                            }
                        }
                    }
                    let scale = weights.add(tile.words * bits.lines() * groups * LINE_BYTES + column * 4);
                    let scale = scale.cast::<f32>().read_unaligned() * *tile.scales.add(block * rows + row);
                    #[allow(clippy::cast_precision_loss, reason = "rounded as the vector instructions do")]
                    let whole = whole as f32;
                    sum = mul_add(whole, scale, sum);
                }
                *out = sum;
            }
        }
    }
}

fn is_set(mask: u16, lane: usize) -> bool {
    mask >> lane & 1 == 1
}

/// Lays words side by side.
///
/// # Safety
/// As for [`MatMulKernels::transpose`](crate::matmul::kernels::MatMulKernels::transpose).
pub(super) unsafe fn transpose(source: WordColumns, start: usize) -> [WordLine; LANES] {
    let mut lines = [[0; LANES]; LANES];
    for column in 0..source.columns {
        for (at, line) in lines
            .iter_mut()
            .enumerate()
            .take(source.length.saturating_sub(start))
        {
            // SAFETY: the word lies in the column, as the caller guarantees.
            line[column] = unsafe { source.first.add(column * source.length + start + at).read() };
        }
    }
    lines
}
