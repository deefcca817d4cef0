//! The threads that custom operators compute on.

/// A pool of threads that divides work into pieces.
pub(crate) trait Workers {
    /// Runs `work` for each of `0..total`, in any order, and returns when all are done.
    fn each(&self, total: usize, work: impl Fn(usize) + Send + Sync) -> Result<(), String>;
}

/// ONNX Runtime's own threads: a second pool would compete with them for the processors.
pub(crate) struct SessionThreads<'a>(pub(crate) &'a ort::operator::ComputeContext);

impl Workers for SessionThreads<'_> {
    fn each(&self, total: usize, work: impl Fn(usize) + Send + Sync) -> Result<(), String> {
        // 0: each piece is handed out by itself, for they differ in how fast they are done.
        self.0.par_for(total, 0, work).map_err(|error| error.to_string())
    }
}
