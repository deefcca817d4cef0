//! The time since the machine started, on systems that name no id of a start.

/// The milliseconds since a Windows machine started, those in which it slept included; `None` elsewhere.
#[cfg(windows)]
pub(crate) fn since_boot_ms() -> Option<u64> {
    #[expect(unsafe_code, reason = "the system's uptime is a C function")]
    // SAFETY: no preconditions.
    let uptime = unsafe { windows_sys::Win32::System::SystemInformation::GetTickCount64() };
    Some(uptime)
}

/// The milliseconds since a Windows machine started, those in which it slept included; `None` elsewhere.
#[cfg(not(windows))]
pub(crate) fn since_boot_ms() -> Option<u64> {
    None
}
