//! Memory of the host that is reserved as address space and allocated as it is written.

use ort::memory::MemoryInfo;

use crate::error::{OnnxError, one_line};
use crate::raw;

/// Reserves memory for keys and values of `rows` rows of `context` tokens, and describes it to ONNX Runtime. `bytes`: `None`
/// where they exceed what can be counted.
pub(super) fn reserve_rows(
    bytes: Option<usize>,
    rows: usize,
    context: usize,
) -> Result<(Mapping, MemoryInfo<'static>), OnnxError> {
    let fault = |fault: String| OnnxError::KvMemory { rows, context, fault };
    let info = raw::host_memory().map_err(|error| fault(one_line(error)))?;
    let bytes = bytes.ok_or_else(|| fault("more than the address space".into()))?;
    let mapping = Mapping::reserve(bytes).map_err(|error| fault(error.to_string()))?;
    Ok((mapping, info))
}

/// Zeroed memory that is reserved at once and allocated page by page as it is written.
pub(super) struct Mapping {
    base: *mut u8,
    bytes: usize,
}

#[cfg(unix)]
impl Mapping {
    fn reserve(bytes: usize) -> std::io::Result<Self> {
        // SAFETY: an anonymous private mapping at an address of the system's choice touches nothing else.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(std::io::Error::last_os_error());
        }
        // With huge pages always on, each of a row's many head segments would cost 2 MiB at its first token.
        // Advice only: kernels without huge pages refuse it, and nothing is lost.
        #[cfg(target_os = "linux")]
        // SAFETY: the range is the mapping just made.
        unsafe {
            libc::madvise(base, bytes, libc::MADV_NOHUGEPAGE);
        }
        Ok(Self {
            base: base.cast(),
            bytes,
        })
    }

    /// Drops the whole pages within `start..start + bytes`; they read as zeros afterwards.
    pub(super) fn give_back(&self, start: usize, bytes: usize) {
        let page = page_size();
        let from = start.next_multiple_of(page);
        let to = (start + bytes).min(self.bytes) / page * page;
        if from < to {
            // SAFETY: whole pages within the mapping; nothing borrows them (`&mut` on the slab above).
            unsafe { libc::madvise(self.base.add(from).cast(), to - from, libc::MADV_DONTNEED) };
        }
    }
}

#[cfg(unix)]
pub(super) fn page_size() -> usize {
    // SAFETY: no preconditions.
    usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(4096)
}

#[cfg(unix)]
impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping belongs to this value and is unmapped once.
        unsafe { libc::munmap(self.base.cast(), self.bytes) };
    }
}

#[cfg(not(unix))]
pub(super) fn page_size() -> usize {
    4096
}

/// Elsewhere the system's zeroed allocation serves, which counts the whole slab against the commit limit:
/// `DecoderConfig::kv_memory` bounds it.
#[cfg(not(unix))]
impl Mapping {
    fn layout(bytes: usize) -> std::io::Result<std::alloc::Layout> {
        std::alloc::Layout::from_size_align(bytes, 64).map_err(std::io::Error::other)
    }

    fn reserve(bytes: usize) -> std::io::Result<Self> {
        // SAFETY: the layout is not empty: a model has at least one layer, row, head and token.
        let base = unsafe { std::alloc::alloc_zeroed(Self::layout(bytes)?) };
        if base.is_null() {
            Err(std::io::ErrorKind::OutOfMemory.into())
        } else {
            Ok(Self { base, bytes })
        }
    }

    pub(super) fn give_back(&self, _start: usize, _bytes: usize) {}
}

#[cfg(not(unix))]
impl Drop for Mapping {
    fn drop(&mut self) {
        if let Ok(layout) = Self::layout(self.bytes) {
            // SAFETY: allocated with the same layout, freed once.
            unsafe { std::alloc::dealloc(self.base, layout) };
        }
    }
}

impl Mapping {
    pub(super) fn base(&self) -> *mut u8 {
        self.base
    }
}
