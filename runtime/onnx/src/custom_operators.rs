//! Operators of our own: their domain in a graph, and the threads that they compute on.

/// The operators' domain in an edited graph.
pub(crate) const DOMAIN: &str = "phi_edge";

/// Runs `0..total` pieces of work, on as many threads as there are.
#[cfg(target_arch = "x86_64")]
pub(crate) trait Workers {
    fn each(&self, total: usize, work: impl Fn(usize) + Send + Sync) -> Result<(), String>;
}

/// ONNX Runtime's own threads, so that there is no second pool beside them.
#[cfg(target_arch = "x86_64")]
pub(crate) struct Threads<'a>(pub(crate) &'a ort::operator::ComputeContext);

#[cfg(target_arch = "x86_64")]
impl Workers for Threads<'_> {
    fn each(&self, total: usize, work: impl Fn(usize) + Send + Sync) -> Result<(), String> {
        // 0: each piece is handed out by itself, for they differ in how fast they are done.
        self.0.par_for(total, 0, work).map_err(|error| error.to_string())
    }
}

/// The domain with all operators that this processor can run, for one session. Weights are packed on `threads` threads.
#[cfg(target_arch = "x86_64")]
pub(crate) fn domain(threads: usize) -> ort::Result<ort::operator::OperatorDomain> {
    let mut domain = ort::operator::OperatorDomain::new(DOMAIN)?;
    if crate::matmul::available() {
        domain = domain.add(crate::matmul::MatMul::new(threads))?;
    }
    if crate::attention::available() {
        domain = domain.add(crate::attention::Attention::default())?;
    }
    Ok(domain)
}

/// The domain, for processors that can run none of the operators.
#[cfg(not(target_arch = "x86_64"))]
pub(crate) fn domain(_threads: usize) -> ort::Result<ort::operator::OperatorDomain> {
    ort::operator::OperatorDomain::new(DOMAIN)
}

/// Whether this processor can run any.
pub(crate) fn available() -> bool {
    crate::matmul::available() || crate::attention::available()
}
