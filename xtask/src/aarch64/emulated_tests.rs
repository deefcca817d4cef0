//! `cargo xtask test --target aarch64`: what depends on the processor, on Arm processors of four kinds.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, bail};

use crate::aarch64::answers::{demonstration_answer, program_here};
use crate::aarch64::emulator::{LIBRARIES, emulator};
use crate::cross_cargo::{TRIPLE, cargo_for_aarch64};
use crate::library::{self, Platform};
use crate::process::{root, run, target};

/// QEMU's processors: without dot products (Raspberry Pi 4), with them (Raspberry Pi 5, RK3588), with products of matrices of
/// bytes too, and with all that QEMU knows (SVE2, SME2); its keys of pointers are not computed as the architecture defines them,
/// which takes most of the time.
const PROCESSORS: [&str; 4] = ["cortex-a72", "neoverse-n1", "neoverse-v1", "max,pauth-impdef=on"];
/// Crates whose results depend on the processor.
const KERNELS: &str = "phi-edge-onnx";
/// Crates that must work there too.
const OTHERS: [&str; 2] = ["phi-edge-engine", "phi-edge-models"];

/// Builds the tests, and runs them one at a time under QEMU's user mode; `arguments` are those of `cargo test`, for which the
/// kernels' tests alone run.
pub(crate) fn test(arguments: &[String]) -> Result<()> {
    let emulator = emulator()?;
    let library = library::fetch(Platform::LinuxArm64)?;
    if arguments.is_empty() {
        for package in OTHERS {
            tests(&emulator, &library, PROCESSORS[0], &["-p", package])?;
        }
    }
    let mut kernels = vec!["-p", KERNELS];
    kernels.extend(arguments.iter().map(String::as_str));
    for processor in PROCESSORS {
        eprintln!("Tests of the kernels on {processor} …");
        tests(&emulator, &library, processor, &kernels)?;
    }
    if arguments.is_empty() {
        ask(&emulator, &library)?;
    }
    Ok(())
}

fn tests(emulator: &Path, library: &Path, processor: &str, arguments: &[&str]) -> Result<()> {
    let (own, for_tests) = arguments.split_at(
        arguments
            .iter()
            .position(|argument| *argument == "--")
            .unwrap_or(arguments.len()),
    );
    let fixtures = std::env::var_os("PHI_EDGE_FIXTURES")
        .map_or_else(|| root().join("../shared/fixtures"), PathBuf::from);
    run(cargo_for_aarch64()?
        .args(["test", "--locked", "--target", TRIPLE])
        .args(own)
        .args(["--", "--test-threads=1"])
        .args(for_tests.iter().skip(1))
        .env(
            "CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER",
            format!("{} -cpu {processor} -L {LIBRARIES}", emulator.display()),
        )
        .env("ORT_DYLIB_PATH", library)
        .env("PHI_EDGE_FIXTURES", fixtures))
}

/// The demonstration model answers there as it does here.
fn ask(emulator: &Path, library: &Path) -> Result<()> {
    run(cargo_for_aarch64()?.args(["build", "--locked", "-p", "phi-edge", "--target", TRIPLE]))?;
    let here = demonstration_answer(&mut Command::new(program_here()?))?;
    for processor in PROCESSORS {
        let mut program = Command::new(emulator);
        program
            .args(["-cpu", processor, "-L", LIBRARIES])
            .arg(target().join(TRIPLE).join("debug/phi-edge"))
            .env("ORT_DYLIB_PATH", library);
        let there = demonstration_answer(&mut program)?;
        if there != here {
            bail!("{processor} answers {there:?} where this machine answers {here:?}");
        }
        eprintln!("{processor} answers as this machine does: {}", there.trim());
    }
    Ok(())
}
