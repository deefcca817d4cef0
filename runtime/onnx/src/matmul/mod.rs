//! Products with weights of four bits: an operator of our own in the place of `MatMulNBits`.
//!
//! ONNX Runtime's kernel reads the weights at the memory's pace for one row, but from a few rows on it takes two to three
//! times as long as the processor's dot products of eight bits need. This one computes the same (`MatMulNBits` of
//! accuracy level 4: rows quantised to eight bits by block, exact sums within a block), on processors with AVX-512 VNNI.
//! A row's result does not depend on the rows beside it, to the last bit.

/// The operator's name in an edited graph.
pub(crate) const OPERATOR: &str = "MatMul4Bits";
/// Changed when results may change: part of what verdicts are kept for.
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
mod release;
#[cfg(test)]
mod tests;
#[cfg(target_arch = "x86_64")]
mod tile;

#[cfg(target_arch = "x86_64")]
pub(crate) use operator::MatMul;

/// Rows of a panel: they go through the product together, and what is unpacked of the weights serves them all. Of 4, 6 and 8
/// rows by three groups this was the fastest from 16 rows on (by 2 %).
#[cfg(target_arch = "x86_64")]
const PANEL_ROWS: usize = 6;
/// So many rows are one panel: eight times three sums, what is unpacked, and little else fill the 32 registers.
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

/// Whether this processor has what the operator needs.
#[cfg(target_arch = "x86_64")]
pub(crate) fn available() -> bool {
    std::arch::is_x86_feature_detected!("avx512f")
        && std::arch::is_x86_feature_detected!("avx512bw")
        && std::arch::is_x86_feature_detected!("avx512vl")
        && std::arch::is_x86_feature_detected!("avx512vnni")
}

/// Whether this processor has what the operator needs: none of this kind has.
#[cfg(not(target_arch = "x86_64"))]
pub(crate) fn available() -> bool {
    false
}
