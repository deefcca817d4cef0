//! Attention: an operator of our own in the place of `GroupQueryAttention`.
//!
//! ONNX Runtime's kernel reads keys and values at half of the memory's pace or less, which is what decoding waits for once
//! a few rows of some hundred tokens are side by side. This one computes the same for rows of any length in one run, on
//! processors with AVX-512, over keys and values of `f32`. What a token gets does not depend on the tokens and rows beside
//! it, to the last bit.

/// The operator's name in an edited graph.
pub(crate) const OPERATOR: &str = "Attention";
/// Changed when results may change: part of what verdicts are kept for.
pub(crate) const REVISION: &str = "attention 1";

#[cfg(target_arch = "x86_64")]
mod attend;
#[cfg(target_arch = "x86_64")]
mod online_softmax;
#[cfg(target_arch = "x86_64")]
mod operator;
#[cfg(test)]
mod tests;

#[cfg(target_arch = "x86_64")]
pub(crate) use operator::Attention;

/// A register's 32-bit lanes.
#[cfg(target_arch = "x86_64")]
const LANES: usize = 16;

/// Whether this processor has what the operator needs.
#[cfg(target_arch = "x86_64")]
pub(crate) fn available() -> bool {
    std::arch::is_x86_feature_detected!("avx512f")
        && std::arch::is_x86_feature_detected!("avx512bw")
        && std::arch::is_x86_feature_detected!("avx512vl")
}

/// Whether this processor has what the operator needs: none of this kind has.
#[cfg(not(target_arch = "x86_64"))]
pub(crate) fn available() -> bool {
    false
}
