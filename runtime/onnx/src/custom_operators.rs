//! The custom operators: their domain in a graph and in a session.

use ort::operator::OperatorDomain;
use parking_lot::Mutex;

use crate::attention::Attention;
use crate::experts::Experts;
use crate::isa::Isa;
use crate::matmul::{MatMul, QuantisingMatMul};

/// The operators' domain in an edited graph.
pub(crate) const DOMAIN: &str = "phi_edge";

/// The domain with all operators, for one session: their kernels are those of `isa`, which this processor has. Weights are
/// packed on `threads` threads.
pub(crate) fn domain(isa: Isa, threads: usize) -> ort::Result<OperatorDomain> {
    OperatorDomain::new(DOMAIN)?
        .add(MatMul::new(isa, threads))?
        .add(QuantisingMatMul::new(isa, threads))?
        .add(Experts::new(isa, threads))?
        .add(Attention::new(isa))
}

/// Opens a session. The first one that has the domain is opened alone: the library adds the domain to a list of the whole
/// process, and fails where two threads do so at once.
pub(crate) fn commit<T>(open: impl FnOnce() -> T) -> T {
    static IS_KNOWN: Mutex<bool> = Mutex::new(false);
    let mut is_known = IS_KNOWN.lock();
    if *is_known {
        drop(is_known);
        return open();
    }
    let opened = open();
    *is_known = true;
    opened
}
