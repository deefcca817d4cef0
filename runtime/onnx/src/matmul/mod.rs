//! The custom operator `MatMul4Bits`, which replaces `MatMulNBits` for weights of four bits.
//!
//! ONNX Runtime's kernel reads the weights at the memory's pace for one row, but from a few rows on it takes two to three
//! times as long as the processor's dot products of eight bits need. This one computes the same (`MatMulNBits` of
//! accuracy level 4: rows quantised to eight bits by block, exact sums within a block), on processors with AVX-512 VNNI.
//! A row's result does not depend on the rows beside it, to the last bit.

/// The operator's name in an edited graph.
pub(crate) const OPERATOR: &str = "MatMul4Bits";
/// The name of the operator that quantises its weights of 32-bit floats when it is loaded.
pub(crate) const QUANTISING_OPERATOR: &str = "MatMulQuantised";
/// The revision of the operator's results: part of the edit cache's key.
pub(crate) const REVISION: &str = "matmul 1";

#[cfg(target_arch = "x86_64")]
mod multiply;
#[cfg(target_arch = "x86_64")]
mod operator;
#[cfg(target_arch = "x86_64")]
mod pack;
#[cfg(target_arch = "x86_64")]
mod quantise;
#[cfg(target_arch = "x86_64")]
mod quantise_weights;
#[cfg(target_arch = "x86_64")]
mod quantising_operator;
#[cfg(target_arch = "x86_64")]
mod release;
#[cfg(test)]
mod tests;
#[cfg(target_arch = "x86_64")]
mod tile;

#[cfg(target_arch = "x86_64")]
pub(crate) use operator::MatMul;
#[cfg(target_arch = "x86_64")]
pub(crate) use quantising_operator::QuantisingMatMul;

/// The rows of a panel: they go through the matmul together, and the unpacked weights serve them all. Of 4, 6 and 8
/// rows by three groups this was the fastest from 16 rows on (by 2 %).
#[cfg(target_arch = "x86_64")]
const PANEL_ROWS: usize = 6;
/// The most rows that are one panel: eight times three sums and the unpacked weights fill the 32 registers.
#[cfg(target_arch = "x86_64")]
const MAX_PANEL_ROWS: usize = 8;
/// Groups of columns of a tile.
#[cfg(target_arch = "x86_64")]
const GROUPS: usize = 3;
/// Columns of a group: a register's 32-bit lanes.
#[cfg(target_arch = "x86_64")]
const LANES: usize = 16;

/// Block sizes that the operator takes.
pub(crate) fn takes_block(block: i64) -> bool {
    matches!(block, 16 | 32 | 64 | 128 | 256)
}

/// Whether this processor supports the operator.
#[cfg(target_arch = "x86_64")]
pub(crate) fn available() -> bool {
    std::arch::is_x86_feature_detected!("avx512f")
        && std::arch::is_x86_feature_detected!("avx512bw")
        && std::arch::is_x86_feature_detected!("avx512vl")
        && std::arch::is_x86_feature_detected!("avx512vnni")
}

/// Whether this processor supports the operator: none of this architecture does.
#[cfg(not(target_arch = "x86_64"))]
pub(crate) fn available() -> bool {
    false
}
