//! The machine's memory, where the system reports it by a call and not by files.

/// Physical memory, in bytes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PhysicalMemory {
    pub(crate) installed: u64,
    /// What can be had without writing pages to disk first.
    pub(crate) available: u64,
}

/// The physical memory of a Windows machine; `None` elsewhere.
#[cfg(windows)]
pub(crate) fn physical() -> Option<PhysicalMemory> {
    use windows_sys::Win32::System::SystemInformation::{GlobalMemoryStatusEx, MEMORYSTATUSEX};
    let mut status = MEMORYSTATUSEX {
        dwLength: u32::try_from(size_of::<MEMORYSTATUSEX>()).ok()?,
        ..Default::default()
    };
    #[expect(unsafe_code, reason = "the system's memory is a C function")]
    // SAFETY: the structure is valid, and its first field says how long it is.
    let reported = unsafe { GlobalMemoryStatusEx(&raw mut status) };
    (reported != 0).then_some(PhysicalMemory {
        installed: status.ullTotalPhys,
        // A process can't have more than is left to be committed, either.
        available: status.ullAvailPhys.min(status.ullAvailPageFile),
    })
}

/// The physical memory of a Windows machine; `None` elsewhere.
#[cfg(not(windows))]
pub(crate) fn physical() -> Option<PhysicalMemory> {
    None
}

#[cfg(all(test, windows))]
mod tests {
    use super::*;

    #[test]
    fn there_is_memory() {
        let memory = physical().expect("a report");
        assert!(memory.available > 0, "{memory:?}");
        assert!(memory.installed >= 64 << 20, "{memory:?}");
    }
}
