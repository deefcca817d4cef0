//! `cargo xtask windows-test`: the program and unit tests for Windows, under wine in a Debian of its own.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use super::build::{for_windows, program};
use super::zip;
use crate::device_library::{self, DeviceProvider};
use crate::files::{copy_file, copy_folder};
use crate::library::{self, Platform};
use crate::process::{cargo, root, run, target};
use crate::{debian_root, test};

/// wine 10: that of Debian 12 lacks a library which the standard library needs.
const SUITE: &str = "trixie";
/// With a screen and a Vulkan driver in software: wine's Direct3D 12 needs both.
const PACKAGES: &str = "wine,wine64,xvfb,libvulkan1,mesa-vulkan-drivers";

/// The folder that tests/src/windows/wine.rs knows, too.
const STAGE: &str = "phi-edge";

/// The crates whose unit tests run: those with code for Windows, and those that read and write files.
const CRATES: [&str; 6] = [
    "phi-edge",
    "phi-edge-config",
    "phi-edge-engine",
    "phi-edge-models",
    "phi-edge-onnx",
    "phi-edge-store",
];

/// What runs under wine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum WindowsTests {
    /// Everything.
    All,
    /// The program: its commands, a conversation over MQTT, its service, DirectML.
    Program,
    /// The unit tests of the crates.
    Units,
}

#[derive(clap::Args)]
pub(crate) struct WindowsTestArgs {
    /// What runs.
    #[arg(long, value_enum, default_value = "all")]
    only: WindowsTests,
    /// The program and the library of this zip, which `cargo xtask windows zip` made, in place of what is built.
    #[arg(long)]
    zip: Option<PathBuf>,
}

/// Builds what is tested, and has the program `phi-edge-windows` run it.
pub(crate) fn test(args: &WindowsTestArgs) -> Result<()> {
    test::packages()?;
    let system = debian_root::make(&target().join("windows"), SUITE, PACKAGES)?;
    let stage = stage(&system, args.zip.as_deref())?;
    let mut parts = Vec::new();
    if args.only != WindowsTests::Program {
        stage_unit_tests(&stage)?;
        parts.push("units");
    }
    if args.only != WindowsTests::Units {
        parts.extend(["commands", "conversation", "service", "directml"]);
    }
    run(cargo().args([
        "build",
        "--locked",
        "-p",
        "phi-edge-tests",
        "--bin",
        "phi-edge-windows",
    ]))?;
    run(Command::new(target().join("debug/phi-edge-windows"))
        .arg(&system)
        .args(parts))
}

/// Puts program, library and model into the root.
fn stage(system: &Path, packed: Option<&Path>) -> Result<PathBuf> {
    let stage = system.join(STAGE);
    if stage.exists() {
        std::fs::remove_dir_all(&stage)?;
    }
    if let Some(packed) = packed {
        zip::unpack(packed, &stage)?;
    } else {
        copy_file(&program(false)?, &stage.join("phi-edge.exe"))?;
        copy_file(
            &library::fetch(Platform::WindowsX64)?,
            &stage.join("onnxruntime.dll"),
        )?;
    }
    let direct_ml = device_library::fetch(DeviceProvider::Directml, None, false)?;
    let beside = direct_ml.parent().context("the library is in no folder")?;
    let is_library = |name: &str| Path::new(name).extension().is_some_and(|kind| kind == "dll");
    copy_folder(beside, &stage.join("directml"), is_library)?;
    copy_folder(&root().join("models/demo"), &stage.join("models/demo"), |_| true)?;
    Ok(stage)
}

/// Builds the unit tests and puts them beside the program.
fn stage_unit_tests(stage: &Path) -> Result<()> {
    for (name, tests) in unit_tests()? {
        std::fs::copy(&tests, stage.join(format!("{name}-tests.exe")))?;
    }
    Ok(())
}

/// The test programs of the libraries and of the daemon, built: crate and path.
fn unit_tests() -> Result<Vec<(String, PathBuf)>> {
    let mut command = for_windows()?;
    command.args(["test", "--no-run", "--locked", "--lib", "--bins", "--target"]);
    command.arg(Platform::WindowsX64.triple());
    for name in CRATES {
        command.args(["-p", name]);
    }
    let output = command
        .arg("--message-format=json")
        .stderr(Stdio::inherit())
        .output()
        .context("cargo can't be started")?;
    if !output.status.success() {
        bail!("the unit tests were not built");
    }
    let text = String::from_utf8_lossy(&output.stdout);
    let messages = text
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let tests = messages.filter(|message| message["profile"]["test"] == true);
    Ok(tests
        .filter_map(|message| {
            let name = message["target"]["name"].as_str()?.to_owned();
            Some((name, PathBuf::from(message["executable"].as_str()?)))
        })
        .collect())
}
