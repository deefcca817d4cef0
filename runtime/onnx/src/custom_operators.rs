//! The custom operators: their domain in a graph and in a session.

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

/// Whether this processor supports any of the operators.
pub(crate) fn available() -> bool {
    crate::matmul::available() || crate::attention::available()
}
