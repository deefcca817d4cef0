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

/// A pointer that several threads write through, each at places of its own.
#[derive(Clone, Copy)]
pub(crate) struct SharedPointer<T>(pub(crate) *mut T);

// SAFETY: what is written through it is divided among the threads by the pieces of work.
unsafe impl<T> Send for SharedPointer<T> {}
// SAFETY: as above.
unsafe impl<T> Sync for SharedPointer<T> {}

impl<T> SharedPointer<T> {
    /// The pointer `offset` elements further.
    #[inline]
    pub(crate) fn at(self, offset: usize) -> *mut T {
        self.0.wrapping_add(offset)
    }
}
