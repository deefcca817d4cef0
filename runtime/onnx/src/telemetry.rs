//! The opt-out of ONNX Runtime's telemetry.
//!
//! Microsoft's own builds for Linux hold an uploader since version 1.29: a report of the process leaves while the
//! environment is being made, and a device id and a queue of reports are written to the user's cache folder. The switch of
//! the C API (`DisableTelemetryEvents`) comes too late for either. `ORT_DISABLE_TELEMETRY=1` in the process's environment
//! prevents both, and is read once, when the library is first used.
//! Source: <https://github.com/microsoft/onnxruntime/pull/27379>.

use std::ffi::OsStr;

/// The environment variable that the library reads.
const OPT_OUT_VARIABLE: &str = "ORT_DISABLE_TELEMETRY";

/// Turns the library's reports off for this process, whatever its environment says. `main` must call it before it
/// starts a thread. Loading the library calls it again, for processes with another `main`.
pub fn forbid_telemetry() {
    if std::env::var_os(OPT_OUT_VARIABLE).as_deref() == Some(OsStr::new("1")) {
        return;
    }
    // SAFETY: `main` calls this before there is a second thread that could read the environment meanwhile. Later it
    // is only reached in processes with another `main` (a test's, outside of cargo, which sets the variable).
    unsafe { std::env::set_var(OPT_OUT_VARIABLE, "1") };
}
