//! `cargo xtask webgpu-test`: the tests of device memory on the WebGPU provider.
//!
//! WebGPU runs over Vulkan, and Mesa's software driver computes it without a GPU. Debian 12's Mesa lacks a feature that it
//! needs, so the tests run in a root of Debian 13 of their own.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::debian_root;
use crate::device_library::{self, DeviceProvider};
use crate::files::copy_folder;
use crate::library::Platform;
use crate::process::{root, run, target};
use crate::test;

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

/// Runs the tests of device memory on WebGPU, one at a time: the provider's sessions of one process share a device, which no two
/// threads may use at once.
pub(crate) fn webgpu_test(fixtures: Option<PathBuf>) -> Result<()> {
    ensure!(
        Platform::of_this_machine()? == Platform::LinuxX64,
        "no ONNX Runtime with WebGPU is pinned for this platform; it is for Linux on x86-64"
    );
    let fixtures = fixtures.unwrap_or_else(|| root().join("../shared/fixtures"));
    let library = device_library::fetch(DeviceProvider::Webgpu, None, false)?;
    let system = debian_root::make(&target().join("webgpu"), SUITE, PACKAGES)?;
    let tests = test::binary("phi-edge-onnx", "device_rows")?;
    let stage = system.join("phi-edge");
    if stage.exists() {
        std::fs::remove_dir_all(&stage)?;
    }
    std::fs::create_dir_all(stage.join("fixtures"))?;
    std::fs::copy(&tests, stage.join("tests")).context("the tests can't be copied")?;
    std::fs::copy(&library, stage.join("libonnxruntime.so"))?;
    for name in FIXTURES {
        let folder = fixtures.join(name);
        copy_folder(&folder, &stage.join("fixtures").join(name), |_| true)?;
    }
    for (name, folder) in [("demo", "models/demo"), ("2024", "tests/fixtures/forms/2024")] {
        copy_folder(&root().join(folder), &stage.join("models").join(name), |_| true)?;
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
