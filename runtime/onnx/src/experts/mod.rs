//! The custom operator `Experts4Bits`, which replaces `QMoE` for experts with weights of four bits.
//!
//! Each token goes through the few experts that its router scores name: a matmul to gates and values, their SwiGLU, a matmul
//! back, and the sum of the experts' results by the router's weights. Tokens are grouped by expert, so that an expert's weights
//! are read once, and those of an expert without tokens not at all. The pieces of work are an expert's tiles of columns, of all
//! experts at once. Rows are quantised as accuracy level 4 has it, with the kernels of [`crate::matmul`]; a token's result does
//! not depend on the tokens beside it, to the last bit.

mod apply;
mod operator;
mod packed_experts;
mod routing;
mod swiglu;
#[cfg(test)]
mod tests;

pub(crate) use operator::Experts;

/// The operator's name in an edited graph.
pub(crate) const OPERATOR: &str = "Experts4Bits";
/// The revision of the operator's results: part of the edit cache's key.
pub(crate) const REVISION: &str = "experts 1";

/// The operator's inputs in its order.
pub(crate) mod input {
    /// Tokens `f32 [.., hidden]`.
    pub(crate) const TOKENS: usize = 0;
    /// Scores, of which a token's largest name its experts: `f32 [tokens, experts]`.
    pub(crate) const SCORES: usize = 1;
    /// The weights of the experts' results, for each expert that may be chosen: `f32 [tokens, experts]`.
    pub(crate) const ROUTER_WEIGHTS: usize = 2;
    /// The first matrices `u8 [experts, 2 inner, hidden / 2]`, whose rows are a gate's and a value's in turns, and their scales
    /// `f32 [experts, 2 inner, blocks]`.
    pub(crate) const IN_WEIGHTS: usize = 3;
    pub(crate) const IN_SCALES: usize = 4;
    /// The second ones `u8 [experts, hidden, inner / 2]`, and their scales `f32 [experts, hidden, blocks]`.
    pub(crate) const OUT_WEIGHTS: usize = 5;
    pub(crate) const OUT_SCALES: usize = 6;
    /// How many of each row's tokens count, `i32 [rows]`; all of them, where it is left out.
    pub(crate) const LENGTHS: usize = 7;
    /// Zero points `u8 [experts, 2 inner, blocks / 2]` and `u8 [experts, hidden, blocks / 2]`, both or none.
    pub(crate) const IN_ZEROS: usize = 8;
    pub(crate) const OUT_ZEROS: usize = 9;
}

/// The operator's attributes beside those that it has from `QMoE`: which of the optional inputs there are.
pub(crate) const HAS_LENGTHS: &str = "has_lengths";
pub(crate) const HAS_ZEROS: &str = "has_zeros";
