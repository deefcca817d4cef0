//! Builds for 64-bit Arm: cargo with Debian's cross compiler as linker and a standard library for it.

use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::process::{cargo, on_ci, run, works};
use crate::standard_library;

pub(crate) const TRIPLE: &str = "aarch64-unknown-linux-gnu";
const PACKAGES: [&str; 2] = ["gcc-aarch64-linux-gnu", "g++-aarch64-linux-gnu"];

/// A cargo that can build for [`TRIPLE`].
pub(crate) fn cargo_for_aarch64() -> Result<Command> {
    cross_compiler()?;
    let mut command = cargo();
    command.env(
        "CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER",
        "aarch64-linux-gnu-gcc",
    );
    // The tests run under an emulator: code without any optimisation takes minutes there.
    command.env("CARGO_PROFILE_DEV_OPT_LEVEL", "1");
    if let Some(sysroot) = standard_library::sysroot(TRIPLE)? {
        // rustdoc compiles the examples of doc comments.
        for flags in ["RUSTFLAGS", "RUSTDOCFLAGS"] {
            command.env(
                format!("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_{flags}"),
                format!("--sysroot={}", sysroot.display()),
            );
        }
    }
    Ok(command)
}

/// Sees to the cross compiler: on CI it is installed.
fn cross_compiler() -> Result<()> {
    let there = || works("aarch64-linux-gnu-gcc", "--version") && works("aarch64-linux-gnu-g++", "--version");
    if there() {
        return Ok(());
    }
    if !on_ci() {
        bail!(
            "the cross compiler was not found; install the packages {}",
            PACKAGES.join(", ")
        );
    }
    run(Command::new("apt-get").args(["-qq", "update"]))?;
    run(Command::new("apt-get")
        .args(["-qq", "install", "-y", "--no-install-recommends"])
        .args(PACKAGES))
    .context("the cross compiler could not be installed")
}
