//! The custom operator `MatMul4Bits`, which replaces `MatMulNBits` for weights of four bits.
//!
//! ONNX Runtime's kernel reads the weights at the memory's pace for one row, but from a few rows on it takes two to three
//! times as long as the processor's dot products of eight bits need. This one computes the same (`MatMulNBits` of
//! accuracy level 4: rows quantised to eight bits by block, exact sums within a block), with kernels for
//! several instruction sets ([`kernels`]). A row's result does not depend on the rows beside it, to the last bit.

#![allow(
    clippy::inline_always,
    reason = "what a kernel calls is compiled with the kernel's target features only where it is inlined"
)]

/// The operator's name in an edited graph.
pub(crate) const OPERATOR: &str = "MatMul4Bits";
/// The name of the operator that quantises its weights of 32-bit floats when it is loaded.
pub(crate) const QUANTISING_OPERATOR: &str = "MatMulQuantised";
/// The revision of the operator's results: part of the edit cache's key.
pub(crate) const REVISION: &str = "matmul 1";

/// Selects a kernel's code for the form of a tile: `compute::<ROWS, GROUPS, LINES>`.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
macro_rules! by_form {
    ($compute:ident, $lines:literal, $form:ident, $tile:ident; $($rows:literal)*; $most:literal) => {
        match ($form.rows, $form.groups) {
            $(
                ($rows, 1) => $compute::<$rows, 1, $lines>($tile),
                ($rows, 2) => $compute::<$rows, 2, $lines>($tile),
                ($rows, _) => $compute::<$rows, 3, $lines>($tile),
            )*
            (_, 1) => $compute::<$most, 1, $lines>($tile),
            (_, 2) => $compute::<$most, 2, $lines>($tile),
            (_, _) => $compute::<$most, 3, $lines>($tile),
        }
    };
}

/// Defines a kernel's entry for tiles of any form with up to six rows: `$name` calls `$compute::<ROWS, GROUPS, LINES>`.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
macro_rules! tile_entry {
    ($name:ident, $compute:ident, $needs:literal) => {
        /// Computes a tile of any form.
        ///
        /// # Safety
        /// As for [`MatMulKernels::tile`](crate::matmul::kernels::MatMulKernels::tile); the processor has
        #[doc = $needs]
        pub(crate) unsafe fn $name(
            form: crate::matmul::operands::TileForm,
            tile: &crate::matmul::operands::Tile,
        ) {
            use crate::matmul::operands::WeightBits;
            // SAFETY: the caller's guarantee is passed on.
            unsafe {
                match form.bits {
                    WeightBits::Four => by_form!($compute, 1, form, tile; 1 2 3 4 5; 6),
                    WeightBits::Eight => by_form!($compute, 2, form, tile; 1 2 3 4 5; 6),
                }
            }
        }
    };
}

#[cfg(target_arch = "x86_64")]
mod avx512_tile;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod group_words;
#[cfg(target_arch = "x86_64")]
mod half_tile;
mod kernels;
#[cfg(target_arch = "x86_64")]
mod maddubs_tile;
mod multiply;
#[cfg(target_arch = "aarch64")]
mod neon_dot_tile;
#[cfg(target_arch = "aarch64")]
mod neon_mull_tile;
#[cfg(target_arch = "aarch64")]
mod neon_tile;
mod operands;
mod operator;
mod pack;
#[cfg(target_arch = "aarch64")]
mod quantise_neon;
mod quantise_weights;
#[cfg(target_arch = "x86_64")]
mod quantise_x86;
mod quantising_operator;
mod release;
mod scalar_kernel;
mod speed;
#[cfg(test)]
mod tests;
#[cfg(target_arch = "aarch64")]
mod transpose_neon;
#[cfg(target_arch = "x86_64")]
mod transpose_x86;
#[cfg(target_arch = "x86_64")]
mod vnni256_tile;

pub(crate) use multiply::{RowPlaces, RowScratch, columns, panel_height};
pub(crate) use operands::WeightBits;
pub(crate) use operator::{MatMul, attribute};
pub(crate) use pack::{MatrixShape, PackedWeights, WeightInputs};
pub(crate) use quantising_operator::QuantisingMatMul;
pub(crate) use release::{bytes_of, release};
pub use speed::{ProductSpeed, product_speeds};

/// Groups of columns of a tile.
const GROUPS: usize = 3;
/// Columns of a group: the 32-bit lanes of a register of 512 bits.
const LANES: usize = 16;

/// Block sizes that the operator takes.
pub(crate) fn takes_block(block: i64) -> bool {
    matches!(block, 16 | 32 | 64 | 128 | 256)
}
