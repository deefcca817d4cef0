//! Builds for Windows: cargo with MinGW as linker and a standard library for it.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Result, bail};

use crate::library::Platform;
use crate::process::{cargo, run, target, works};
use crate::standard_library;

/// Returns the program, built.
pub(super) fn program(release: bool) -> Result<PathBuf> {
    let triple = Platform::WindowsX64.triple();
    let mut command = for_windows()?;
    command.args(["build", "--locked", "-p", "phi-edge", "--target", triple]);
    if release {
        command.arg("--release");
    }
    run(&mut command)?;
    let profile = if release { "release" } else { "debug" };
    Ok(target().join(triple).join(profile).join("phi-edge.exe"))
}

/// A cargo that can build for Windows.
pub(super) fn for_windows() -> Result<Command> {
    if !works("x86_64-w64-mingw32-gcc", "--version") || !works("x86_64-w64-mingw32-g++", "--version") {
        bail!("MinGW was not found; install gcc-mingw-w64-x86-64 and g++-mingw-w64-x86-64");
    }
    let mut command = cargo();
    if let Some(sysroot) = standard_library::sysroot(Platform::WindowsX64.triple())? {
        command.env(
            "CARGO_TARGET_X86_64_PC_WINDOWS_GNU_RUSTFLAGS",
            format!("--sysroot={}", sysroot.display()),
        );
    }
    Ok(command)
}
