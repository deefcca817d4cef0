//! The handler that records a fatal signal in the crash marker.
#![allow(unsafe_code, reason = "signal handlers are set by a C function")]

use std::fs::File;
use std::os::fd::IntoRawFd as _;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicI32, Ordering};

/// The signals of a crash; `SIGABRT` is also that of systemd's watchdog.
const FATAL_SIGNALS: [libc::c_int; 5] = [
    libc::SIGABRT,
    libc::SIGSEGV,
    libc::SIGBUS,
    libc::SIGILL,
    libc::SIGFPE,
];

static MARKER_FD: AtomicI32 = AtomicI32::new(-1);
/// The previous actions of the signals, in the order of [`FATAL_SIGNALS`].
static PREVIOUS_ACTIONS: OnceLock<[libc::sigaction; FATAL_SIGNALS.len()]> = OnceLock::new();

/// Appends a line to `file` when a fatal signal arrives, and restores the signal's previous action. Handlers are
/// installed once.
pub(crate) fn write_on_fatal_signal(file: File) {
    // Kept open for the rest of the process's life.
    MARKER_FD.store(file.into_raw_fd(), Ordering::SeqCst);
    PREVIOUS_ACTIONS.get_or_init(|| FATAL_SIGNALS.map(install));
}

fn install(signal: libc::c_int) -> libc::sigaction {
    let handler: extern "C" fn(libc::c_int) = handle;
    // SAFETY: all-zero bytes are a valid sigaction: no handler, no flags, an empty mask.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = handler as *const () as usize;
    // On the alternate stack: the stack itself may be what has overflowed.
    action.sa_flags = libc::SA_ONSTACK;
    // SAFETY: as above.
    let mut before: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: both point to initialised structures that outlive the call; the handler only calls functions that are
    // async-signal-safe (signal-safety(7)).
    unsafe {
        libc::sigemptyset(&raw mut action.sa_mask);
        libc::sigaction(signal, &raw const action, &raw mut before);
    }
    before
}

extern "C" fn handle(signal: libc::c_int) {
    const CRASH_LINE: &[u8] = b"crashed\n";
    let mark = MARKER_FD.load(Ordering::SeqCst);
    if mark >= 0 {
        // SAFETY: the buffer is valid for its length; a bad descriptor is an error that is ignored.
        unsafe { libc::write(mark, CRASH_LINE.as_ptr().cast(), CRASH_LINE.len()) };
    }
    let before = FATAL_SIGNALS
        .iter()
        .position(|known| *known == signal)
        .and_then(|n| Some(PREVIOUS_ACTIONS.get()?[n]));
    // SAFETY: the structure came from sigaction itself, or is a valid default; sigaction and raise are
    // async-signal-safe.
    unsafe {
        let before = before.unwrap_or_else(|| std::mem::zeroed());
        libc::sigaction(signal, &raw const before, std::ptr::null_mut());
        // A fault comes again by itself on return; a signal that was sent would not.
        libc::raise(signal);
    }
}
