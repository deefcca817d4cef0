//! `cargo xtask library --provider webgpu` and `cargo xtask webgpu-test`: the ONNX Runtime library with the WebGPU provider, and
//! the tests of device memory on it.
//!
//! WebGPU runs over Vulkan, and Mesa's software driver computes it without a GPU. Debian 12's Mesa lacks a feature that it
//! needs, so the tests run in a root of Debian 13 of their own.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::debian_root;
use crate::library::Platform;
use crate::process::{cargo, root, run, target};
use crate::wheels;

/// The version of the wheel in `xtask/webgpu.txt`.
const VERSION: &str = "1.27.0";

const SUITE: &str = "trixie";
/// The Vulkan loader and Mesa's drivers, the one in software among them.
const PACKAGES: &str = "mesa-vulkan-drivers,libvulkan1,libstdc++6";

/// The models with golden outputs that the tests run.
const FIXTURES: [&str; 4] = [
    "phi3-mini-tiny-fp32",
    "phi3-mini-tiny-int4",
    "phi3-mini-tiny-cuda",
    "phi3-mini-tiny-dml",
];

/// The library's path, fetched if it is not there yet.
pub(crate) fn library() -> Result<PathBuf> {
    if Platform::of_this_machine()? != Platform::LinuxX64 {
        bail!("no ONNX Runtime with WebGPU is pinned for this platform; it is for Linux on x86-64");
    }
    // Apart from the pinned library, which is what whoever looks below target/onnxruntime means.
    let folder = target().join("webgpu/library").join(VERSION);
    let library = folder.join(format!("onnxruntime/capi/libonnxruntime.so.{VERSION}"));
    if library.is_file() {
        return Ok(library);
    }
    eprintln!("Fetching ONNX Runtime {VERSION} with WebGPU …");
    let tags = [
        "--python-version",
        "3.12",
        "--implementation",
        "cp",
        "--abi",
        "cp312",
        "--platform",
        "manylinux_2_28_x86_64",
    ];
    wheels::fetch("webgpu.txt", &tags, &folder)?;
    if !library.is_file() {
        bail!(
            "the wheel of ONNX Runtime {VERSION} with WebGPU holds no {}",
            library.display()
        );
    }
    Ok(library)
}

/// Runs the tests of device memory on WebGPU, one at a time: the provider's sessions of one process share a device, which no two
/// threads may use at once.
pub(crate) fn test(fixtures: Option<PathBuf>) -> Result<()> {
    let fixtures = fixtures.unwrap_or_else(|| root().join("../shared/fixtures"));
    let library = library()?;
    let system = debian_root::make(&target().join("webgpu"), SUITE, PACKAGES)?;
    let tests = test_binary()?;
    let stage = system.join("phi-edge");
    if stage.exists() {
        std::fs::remove_dir_all(&stage)?;
    }
    std::fs::create_dir_all(stage.join("fixtures"))?;
    std::fs::copy(&tests, stage.join("tests")).context("the tests can't be copied")?;
    std::fs::copy(&library, stage.join("libonnxruntime.so"))?;
    for name in FIXTURES {
        let folder = fixtures.join(name);
        copy_files(&folder, &stage.join("fixtures").join(name))
            .with_context(|| format!("the fixture {} can't be copied", folder.display()))?;
    }
    for (name, folder) in [("demo", "models/demo"), ("2024", "tests/fixtures/forms/2024")] {
        copy_files(&root().join(folder), &stage.join("models").join(name))?;
    }
    run(Command::new("chroot")
        .arg(&system)
        .args(["/phi-edge/tests", "--test-threads=1"])
        .env("ORT_DYLIB_PATH", "/phi-edge/libonnxruntime.so")
        .env("PHI_EDGE_FIXTURES", "/phi-edge/fixtures")
        .env("PHI_EDGE_TEST_MODELS", "/phi-edge/models")
        .env("PHI_EDGE_TEST_PROVIDER", "webgpu")
        // Dawn wants a folder of its own, and no fixture may be missing.
        .env("XDG_RUNTIME_DIR", "/tmp")
        .env("CI", "true"))
}

/// The test's binary, built.
fn test_binary() -> Result<PathBuf> {
    let output = cargo()
        .args([
            "test",
            "-p",
            "phi-edge-onnx",
            "--test",
            "device_rows",
            "--no-run",
            "--locked",
        ])
        .arg("--message-format=json")
        .stderr(Stdio::inherit())
        .output()
        .context("cargo can't be started")?;
    if !output.status.success() {
        bail!("the tests of device memory were not built");
    }
    let text = String::from_utf8_lossy(&output.stdout);
    let messages = text
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let built = messages.filter(|message| message["target"]["name"] == "device_rows");
    built
        .filter_map(|message| message["executable"].as_str().map(PathBuf::from))
        .next_back()
        .context("cargo named no binary of the tests of device memory")
}

fn copy_files(from: &Path, to: &Path) -> Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)? {
        let file = entry?.path();
        if let (true, Some(name)) = (file.is_file(), file.file_name()) {
            std::fs::copy(&file, to.join(name))?;
        }
    }
    Ok(())
}
