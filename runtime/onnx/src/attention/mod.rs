//! The custom operator `Attention`, which replaces `GroupQueryAttention`.
//!
//! ONNX Runtime's kernel reads keys and values at half of the memory's bandwidth or less, which bounds decoding once
//! a few rows of some hundred tokens share a run. This one computes the same for rows of any length in one run, on
//! processors with AVX-512, over keys and values of `f32`. The result of a token does not depend on the tokens and
//! rows beside it, to the last bit.

/// The operator's name in an edited graph.
pub(crate) const OPERATOR: &str = "Attention";
/// The revision of the operator's results: part of the edit cache's key.
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

/// The 32-bit lanes of a register.
#[cfg(target_arch = "x86_64")]
const LANES: usize = 16;

/// Whether this processor supports the operator.
#[cfg(target_arch = "x86_64")]
pub(crate) fn available() -> bool {
    std::arch::is_x86_feature_detected!("avx512f")
        && std::arch::is_x86_feature_detected!("avx512bw")
        && std::arch::is_x86_feature_detected!("avx512vl")
}

/// Whether the operator has kernels for 8-bit keys and values on this processor. This version has none.
pub(crate) fn supports_i8() -> bool {
    false
}

/// Whether this processor supports the operator: none of this architecture does.
#[cfg(not(target_arch = "x86_64"))]
pub(crate) fn available() -> bool {
    false
}
