//! The graph that edits are held against.
//!
//! The library's kernels for x86-64 quantise the rows of a product as accuracy level 4 is defined: by block, and what is no number
//! stays none. Those for Arm do it by row, in another form, and with dot products of bytes they make numbers of NaN. So their
//! results neither equal those of the custom operator, nor do they show what an edit broke. There, products are computed in
//! 32-bit floats while edits are tried that leave them alone, and one product is compared on rows that quantisation does not change.
//!
//! The library's experts with rows of eight bits round a token by the number of tokens beside it (seen: 3e-2 of the largest logit at
//! full size), so that they are computed in 32-bit floats everywhere.

use prost::bytes::Bytes;

use crate::prepare::{exact_experts, exact_matmuls};

/// Whether the library's kernels quantise as accuracy level 4 is defined.
const QUANTISES_AS_DEFINED: bool = cfg!(target_arch = "x86_64");

/// The graph whose results show what is wrong with an edit of `graph`.
pub(crate) fn reference(graph: &Bytes) -> Bytes {
    let graph = exact_experts(graph).unwrap_or_else(|| graph.clone());
    if QUANTISES_AS_DEFINED {
        return graph;
    }
    exact_matmuls(&graph).unwrap_or(graph)
}

/// Pseudo-random numbers for the rows of products, some of them large, as in a layer's input.
pub(crate) fn row_values(count: usize) -> Vec<f32> {
    let mut state = 1u32;
    let mut next = || {
        // Numerical Recipes' generator: nothing depends on its quality.
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        f32::from(i16::from_ne_bytes([
            (state >> 16).to_le_bytes()[0],
            (state >> 24).to_le_bytes()[0],
        ])) / 32768.0
    };
    let values = (0..count).map(|_| next() / (1.05 - next().abs()));
    if QUANTISES_AS_DEFINED {
        values.collect()
    } else {
        whole(values)
    }
}

/// The largest magnitude of a quantised value.
const LARGEST: f32 = 127.0;
/// The values of the smallest block.
const BLOCK: usize = 16;

/// Whole numbers that quantisation to eight bits leaves as they are: the largest magnitude of each block is 127.
fn whole(values: impl Iterator<Item = f32>) -> Vec<f32> {
    values
        .enumerate()
        .map(|(at, value)| {
            if at % BLOCK == 0 {
                LARGEST.copysign(value)
            } else {
                (value * LARGEST / 4.0).round().clamp(-LARGEST, LARGEST)
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_rows_are_kept_by_quantisation() {
        let values = whole(row_values(1000).into_iter());
        for block in values.chunks(BLOCK) {
            let largest = block.iter().fold(0f32, |most, value| most.max(value.abs()));
            assert_eq!(largest.to_bits(), LARGEST.to_bits());
            assert!(block.iter().all(|value| value.fract() == 0.0));
        }
        assert!(values.iter().any(|value| value.abs() < LARGEST / 2.0));
    }
}
