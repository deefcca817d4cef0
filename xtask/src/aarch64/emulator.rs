//! QEMU's user mode, in a version that runs ONNX Runtime.

use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::debian_package;
use crate::process::target;

/// The suite of Debian whose QEMU is used: that of bookworm itself, 7.2, crashes.
const SUITE: &str = "bookworm-backports";
const PACKAGE: &str = "qemu-user";
/// The C library of Debian's cross compiler, for programs that are linked by it.
pub(super) const LIBRARIES: &str = "/usr/aarch64-linux-gnu";

/// Returns the emulator of 64-bit Arm, a static program, fetched if it is not there yet.
pub(super) fn emulator() -> Result<PathBuf> {
    let folder = target().join("qemu-user");
    let program = folder.join("bin/qemu-aarch64");
    if !program.is_file() {
        eprintln!("Fetching QEMU's user mode …");
        let download = folder.join("download");
        let package = debian_package::download(SUITE, PACKAGE, |_| true, &download)
            .context("QEMU's user mode can't be fetched")?;
        debian_package::unpack(&package, "*/bin/qemu-aarch64", 3, &folder.join("bin"))?;
        std::fs::remove_dir_all(&download)?;
    }
    Ok(program)
}
