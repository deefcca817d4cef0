//! The custom operator `Attention`, which replaces `GroupQueryAttention`.
//!
//! ONNX Runtime's kernel reads keys and values at half of the memory's bandwidth or less, which bounds decoding once
//! a few rows of some hundred tokens share a run. This one computes the same for rows of any length in one run, on
//! processors with AVX-512, over keys and values of `f32` or, with VNNI, of 8 bits, in blocks of its own ([`layout`]).
//! A run names its rows by a table; tokens that rows share are held once and read once for all of them. The result of
//! a token does not depend on the tokens and rows beside it, nor on where its keys and values are, to the last bit.

/// The operator's name in an edited graph.
pub(crate) const OPERATOR: &str = "Attention";
/// The attribute with the layer, whose part of the blocks a node uses.
pub(crate) const LAYER: &str = "layer";
/// The revision of the operator's results: part of the edit cache's key.
pub(crate) const REVISION: &str = "attention 2";

#[cfg(target_arch = "x86_64")]
mod attend;
#[cfg(target_arch = "x86_64")]
mod f32_tile;
#[cfg(target_arch = "x86_64")]
mod hadamard;
#[cfg(target_arch = "x86_64")]
mod i8_tile;
#[cfg(target_arch = "x86_64")]
mod kernel;
pub(crate) mod layout;
#[cfg(target_arch = "x86_64")]
mod operator;
#[cfg(target_arch = "x86_64")]
mod partition;
#[cfg(target_arch = "x86_64")]
mod softmax;
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

/// Whether this processor supports the operator: none of this architecture does.
#[cfg(not(target_arch = "x86_64"))]
pub(crate) fn available() -> bool {
    false
}

/// Whether this processor supports the operator over keys and values of 8 bits.
#[cfg(target_arch = "x86_64")]
pub(crate) fn supports_i8() -> bool {
    available() && std::arch::is_x86_feature_detected!("avx512vnni")
}

/// Whether this processor supports the operator over keys and values of 8 bits: none of this architecture does.
#[cfg(not(target_arch = "x86_64"))]
pub(crate) fn supports_i8() -> bool {
    false
}
