//! The custom operators: their domain in a graph and in a session.

use parking_lot::Mutex;

/// The operators' domain in an edited graph.
pub(crate) const DOMAIN: &str = "phi_edge";

/// The domain with all operators that this processor supports, for one session. Weights are packed on `threads`
/// threads.
#[cfg(target_arch = "x86_64")]
pub(crate) fn domain(threads: usize) -> ort::Result<ort::operator::OperatorDomain> {
    let mut domain = ort::operator::OperatorDomain::new(DOMAIN)?;
    if crate::matmul::available() {
        domain = domain
            .add(crate::matmul::MatMul::new(threads))?
            .add(crate::matmul::QuantisingMatMul::new(threads))?;
    }
    if crate::attention::available() {
        domain = domain.add(crate::attention::Attention::default())?;
    }
    Ok(domain)
}

/// The empty domain, for processors that support none of the operators.
#[cfg(not(target_arch = "x86_64"))]
pub(crate) fn domain(_threads: usize) -> ort::Result<ort::operator::OperatorDomain> {
    ort::operator::OperatorDomain::new(DOMAIN)
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

/// Whether this processor supports any of the operators.
pub(crate) fn available() -> bool {
    crate::matmul::available() || crate::attention::available()
}
