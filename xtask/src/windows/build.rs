//! Builds for Windows: cargo with MinGW as linker and a standard library for it.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::library::Platform;
use crate::process::{cargo, on_ci, run, target, works};
use crate::standard_library;

const PACKAGES: [&str; 2] = ["gcc-mingw-w64-x86-64", "g++-mingw-w64-x86-64"];

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

/// Checks that the program compiles.
///
/// Only says so where there is no standard library: Debian keeps its source for a few versions of the compiler, and their going is no
/// fault of the program.
pub(super) fn check() -> Result<()> {
    let triple = Platform::WindowsX64.triple();
    if let Err(error) = standard_library::sysroot(triple) {
        println!("SKIPPED: the check for Windows: {error:#}");
        return Ok(());
    }
    run(for_windows()?.args([
        "check", "--locked", "--quiet", "-p", "phi-edge", "--target", triple,
    ]))
}

/// A cargo that can build for Windows.
pub(super) fn for_windows() -> Result<Command> {
    mingw()?;
    let mut command = cargo();
    if let Some(sysroot) = standard_library::sysroot(Platform::WindowsX64.triple())? {
        command.env(
            "CARGO_TARGET_X86_64_PC_WINDOWS_GNU_RUSTFLAGS",
            format!("--sysroot={}", sysroot.display()),
        );
    }
    Ok(command)
}

/// Sees to MinGW: on CI it is installed.
fn mingw() -> Result<()> {
    if works("x86_64-w64-mingw32-gcc", "--version") && works("x86_64-w64-mingw32-g++", "--version") {
        return Ok(());
    }
    if !on_ci() {
        bail!("MinGW was not found; install {}", PACKAGES.join(" and "));
    }
    run(Command::new("apt-get").args(["-qq", "update"]))?;
    run(Command::new("apt-get")
        .args(["-qq", "install", "-y", "--no-install-recommends"])
        .args(PACKAGES))
    .context("MinGW could not be installed")
}
