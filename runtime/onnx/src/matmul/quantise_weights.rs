//! Quantisation of a matrix of floats to packed weights, at load.

use crate::isa::Isa;
use crate::matmul::operands::{LINE_BYTES, WeightBits};
use crate::matmul::pack::{MatrixShape, PackedWeights, each_tile, kernels};
use crate::matmul::{GROUPS, LANES};

impl PackedWeights {
    /// Quantises `weights` (`[k, n]`, row-major) by block, on `threads` threads, for the kernels of `isa`. The error says
    /// what does not fit, or that the processor does not have the instruction set.
    ///
    /// Eight bits: the largest magnitude of a block becomes 127. Four bits: the value of the largest magnitude becomes -8,
    /// as ONNX Runtime's and llama.cpp's symmetric forms have it.
    pub(crate) fn quantised(
        shape: MatrixShape,
        weights: &[f32],
        (isa, threads): (Isa, usize),
    ) -> Result<Self, String> {
        let MatrixShape { k, n, block, bits } = shape;
        let kernels = kernels(isa)?;
        let fits = k > 0 && n > 0 && block.is_power_of_two() && (16..=256).contains(&block);
        if !fits || weights.len() != k * n {
            return Err(format!(
                "{} weights do not fit a matrix of {k} times {n} in blocks of {block}",
                weights.len()
            ));
        }
        Ok(Self {
            shape,
            data: each_tile(shape, threads, |tiles| quantise_tiles(shape, weights, tiles)),
            zeros: vec![bits.zero(); GROUPS * LANES],
            symmetric: true,
            kernels,
        })
    }
}

fn quantise_tiles(shape: MatrixShape, weights: &[f32], tiles: &mut [(usize, &mut [u8])]) {
    for (tile, data) in tiles {
        let groups = shape.groups(*tile);
        for group in 0..groups {
            let first = *tile * GROUPS * LANES + group * LANES;
            let columns = LANES.min(shape.n - first);
            for (block, data) in data.chunks_mut(shape.block_bytes(groups)).enumerate() {
                let rows = block * shape.block..shape.k.min((block + 1) * shape.block);
                let rows = rows.map(|row| &weights[row * shape.n + first..][..columns]);
                quantise_block(shape, (group, groups), rows, data);
            }
        }
    }
}

/// Quantises a block of a group's columns, given by its rows.
fn quantise_block<'a>(
    shape: MatrixShape,
    (group, groups): (usize, usize),
    rows: impl Iterator<Item = &'a [f32]> + Clone,
    data: &mut [u8],
) {
    let mut extremes = [0f32; LANES];
    for row in rows.clone() {
        for (extreme, value) in extremes.iter_mut().zip(row) {
            if value.abs() > extreme.abs() {
                *extreme = *value;
            }
        }
    }
    let scales = extremes.map(|extreme| match shape.bits {
        WeightBits::Four => extreme / -8.0,
        WeightBits::Eight => extreme.abs() / 127.0,
    });
    let inverses = scales.map(|scale| if scale == 0.0 { 0.0 } else { 1.0 / scale });
    let zero = f32::from(shape.bits.zero());
    let most = if shape.bits == WeightBits::Four {
        15.0
    } else {
        255.0
    };
    for (at, row) in rows.enumerate() {
        let (word, place) = (at / 8, at % 8);
        for (lane, (value, inverse)) in row.iter().zip(&inverses).enumerate() {
            #[allow(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "clamped to the range before"
            )]
            let stored = (value * inverse + zero).round_ties_even().clamp(0.0, most) as u8;
            let lane = lane * 4 + place / 2;
            match shape.bits {
                WeightBits::Four => {
                    let byte = (word * groups + group) * LINE_BYTES + lane;
                    data[byte] |= stored << (place % 2 * 4);
                }
                WeightBits::Eight => {
                    let byte = ((2 * word + place % 2) * groups + group) * LINE_BYTES + lane;
                    data[byte] = stored;
                }
            }
        }
    }
    let start = (shape.words() * shape.bits.lines() * groups + group) * LINE_BYTES;
    for (to, scale) in data[start..][..LINE_BYTES].chunks_exact_mut(4).zip(scales) {
        to.copy_from_slice(&scale.to_ne_bytes());
    }
}
