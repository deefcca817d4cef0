//! A stand-in for `PagedAttention` on the processor, where ONNX Runtime has no kernel for it.

use std::fmt;

use ort::operator::OperatorDomain;

/// The domain of ONNX Runtime's own operators.
pub(crate) const RUNTIME_DOMAIN: &str = "com.microsoft";

/// A custom operator `PagedAttention` that computes on the processor what ONNX Runtime's computes on CUDA: for tests.
#[derive(Clone, Copy)]
pub struct PagedStandIn {
    /// The operator's domain.
    pub domain: &'static str,
    /// Makes the domain, for one session.
    pub operators: fn() -> ort::Result<OperatorDomain>,
    /// Tokens of a block.
    pub block_tokens: usize,
}

impl PartialEq for PagedStandIn {
    fn eq(&self, other: &Self) -> bool {
        (self.domain, self.block_tokens) == (other.domain, other.block_tokens)
    }
}

impl Eq for PagedStandIn {}

impl fmt::Debug for PagedStandIn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PagedStandIn({}, {})", self.domain, self.block_tokens)
    }
}
