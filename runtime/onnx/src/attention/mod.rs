//! The custom operator `Attention`, which replaces `GroupQueryAttention`.
//!
//! ONNX Runtime's kernel reads keys and values at half of the memory's bandwidth or less, which bounds decoding once
//! a few rows of some hundred tokens share a run. This one computes the same for rows of any length in one run, with kernels
//! for several instruction sets ([`kernel`]), over keys and values of `f32` or of 8 bits, in blocks of its own ([`layout`]).
//! A run names its rows by a table; tokens that rows share are held once and read once for all of them. The result of
//! a token does not depend on the tokens and rows beside it, nor on where its keys and values are, to the last bit.

#![allow(
    clippy::inline_always,
    reason = "what a kernel calls is compiled with the kernel's target features only where it is inlined"
)]

/// The operator's name in an edited graph.
pub(crate) const OPERATOR: &str = "Attention";
/// The attribute with the layer, whose part of the blocks a node uses.
pub(crate) const LAYER: &str = "layer";
/// The revision of the operator's results: part of the edit cache's key.
pub(crate) const REVISION: &str = "attention 2";

mod attend;
mod f32_tile;
mod hadamard;
mod i8_tile;
mod kernel;
pub(crate) mod layout;
mod operator;
mod partition;
mod softmax;
#[cfg(test)]
mod tests;
mod vectors;

pub(crate) use operator::Attention;
