//! `cargo xtask windows-test`: the program and unit tests for Windows, under wine in a Debian of its own.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use super::build::{for_windows, program};
use crate::library::{self, Platform};
use crate::process::{cargo, root, run, target};
use crate::{debian_root, test};

/// wine 10: that of Debian 12 lacks a library which the standard library needs.
const SUITE: &str = "trixie";
const PACKAGES: &str = "wine,wine64";

/// The folders that tests/src/windows/wine.rs knows, too.
const STAGE: &str = "phi-edge";
const PREFIX: &str = "wine-prefix";

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
pub(crate) enum WindowsTests {
    /// Everything.
    All,
    /// The program: its commands, a conversation over MQTT, its service.
    Program,
    /// The unit tests of the crates.
    Units,
}

/// Runs the tests.
pub(crate) fn test(which: WindowsTests) -> Result<()> {
    test::packages()?;
    let system = debian_root::make(&target().join("windows"), SUITE, PACKAGES)?;
    let stage = stage(&system)?;
    make_prefix(&system)?;
    if which != WindowsTests::Program {
        units(&system, &stage)?;
    }
    if which != WindowsTests::Units {
        run(cargo().args([
            "build",
            "--locked",
            "-p",
            "phi-edge-tests",
            "--bin",
            "phi-edge-windows",
        ]))?;
        run(Command::new(target().join("debug/phi-edge-windows")).arg(&system))?;
    }
    Ok(())
}

/// Puts program, library and model into the root.
fn stage(system: &Path) -> Result<PathBuf> {
    let stage = system.join(STAGE);
    if stage.exists() {
        std::fs::remove_dir_all(&stage)?;
    }
    let model = stage.join("models/demo");
    std::fs::create_dir_all(&model)?;
    std::fs::copy(program(false)?, stage.join("phi-edge.exe"))?;
    std::fs::copy(
        library::fetch(Platform::WindowsX64)?,
        stage.join("onnxruntime.dll"),
    )?;
    for entry in std::fs::read_dir(root().join("models/demo"))? {
        let file = entry?.path();
        if let (true, Some(name)) = (file.is_file(), file.file_name()) {
            std::fs::copy(&file, model.join(name))?;
        }
    }
    Ok(stage)
}

/// Makes wine's folder of a Windows installation, once.
fn make_prefix(system: &Path) -> Result<()> {
    let stamp = system.join(PREFIX).join("made");
    if stamp.is_file() {
        return Ok(());
    }
    eprintln!("Making an installation of Windows for wine …");
    run(wine(system, "wineboot").arg("-i")).context("wine can't be set up")?;
    run(wine(system, "wineserver").arg("-w"))?;
    std::fs::write(stamp, "")?;
    Ok(())
}

/// Builds and runs the unit tests.
fn units(system: &Path, stage: &Path) -> Result<()> {
    let mut failed = Vec::new();
    for (name, tests) in unit_tests()? {
        let copy = format!("{name}-tests.exe");
        std::fs::copy(&tests, stage.join(&copy))?;
        eprintln!("{name}:");
        let status = wine(system, "wine")
            .arg(format!(r"Z:\{STAGE}\{copy}"))
            .arg("--test-threads=2")
            .env("ORT_DYLIB_PATH", format!(r"Z:\{STAGE}\onnxruntime.dll"))
            .status()?;
        if !status.success() {
            failed.push(name);
        }
    }
    if !failed.is_empty() {
        bail!("unit tests failed under wine: {}", failed.join(", "));
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

/// A program of the root, in an environment that is the same everywhere.
fn wine(system: &Path, program: &str) -> Command {
    let mut command = Command::new("unshare");
    // wine needs /proc, which is there for its processes alone.
    let enter = r#"mount -t proc proc "$0/proc" && exec chroot "$0" "$@""#;
    command
        .args(["--mount", "sh", "-c", enter])
        .arg(system)
        .arg(program)
        .env_clear()
        .env(
            "PATH",
            "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        )
        .env("HOME", "/root")
        .env("LANG", "C.UTF-8")
        .env("WINEPREFIX", format!("/{PREFIX}"))
        .env("WINEDEBUG", "-all");
    command
}
