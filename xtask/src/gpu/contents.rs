//! What the kit holds, laid out in one folder.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::json;

use crate::device_library::{self, DeviceProvider};
use crate::files::{copy_file, copy_folder};
use crate::library::Platform;
use crate::process::{cargo, root, run, target};
use crate::{python, test, wheels};

/// The models with golden outputs that the tests run.
const FIXTURES: [&str; 5] = [
    "phi3-mini-tiny-fp32",
    "phi3-mini-tiny-int4",
    "phi3-mini-tiny-cuda",
    "phi3-mini-tiny-dml",
    "phi35-vision-tiny",
];

/// Models of the repository that the tests run, and their names in the kit.
const OWN_MODELS: [(&str, &str); 3] = [
    ("models/demo", "demo"),
    ("tests/fixtures/forms/2024", "2024"),
    ("tests/fixtures/vision", "vision"),
];

/// The kit's tests, by the step that runs them: binaries of the package phi-edge-onnx.
const TESTS: [(&str, &str); 3] = [
    ("goldens", "device_rows"),
    ("goldens", "paged_rows"),
    ("vision", "device_vision"),
];

/// The measured models, written on the machine from recipes: their names, and the shape in which they differ from Phi-3.5-mini.
const MODELS: [(&str, &[&str]); 2] = [("full", &[]), ("small", &["--layers", "4", "--context", "16384"])];

/// Lays the kit's contents out in `stage`, which is emptied before; `binary` is a built phi-edge.
pub(crate) fn stage(stage: &Path, binary: Option<&Path>, fixtures: &Path) -> Result<()> {
    if stage.exists() {
        std::fs::remove_dir_all(stage)?;
    }
    std::fs::create_dir_all(stage)?;
    let program = match binary {
        Some(binary) => binary.to_path_buf(),
        None => release()?,
    };
    place_program(&program, &stage.join("phi-edge"))?;
    for (step, name) in TESTS {
        place_program(
            &test::binary("phi-edge-onnx", name)?,
            &stage.join(step).join(name),
        )?;
    }
    for name in FIXTURES {
        copy_folder(&fixtures.join(name), &stage.join("fixtures").join(name), |_| true)?;
    }
    for (folder, name) in OWN_MODELS {
        copy_folder(
            &root().join(folder),
            &stage.join("test-models").join(name),
            |_| true,
        )?;
    }
    libraries(stage)?;
    models(stage)?;
    for script in ["gpu/bare_loop.py", "genai_bench.py"] {
        let script = root().join("xtask").join(script);
        let name = script.file_name().context("a script has a name")?;
        copy_file(&script, &stage.join(name))?;
    }
    let kit = json!({
        "version": env!("CARGO_PKG_VERSION"),
        "commit": commit(),
        "binary": if binary.is_some() { "given" } else { "release" },
    });
    std::fs::write(stage.join("kit.json"), kit.to_string())?;
    Ok(())
}

/// A release of phi-edge, built.
fn release() -> Result<PathBuf> {
    run(cargo().args(["build", "--release", "--locked", "-p", "phi-edge"]))?;
    Ok(target().join("release/phi-edge"))
}

/// Copies a program without what debuggers need.
fn place_program(from: &Path, to: &Path) -> Result<()> {
    copy_file(from, to)?;
    // Without `strip` the kit is larger.
    let _ = Command::new("strip").arg(to).status();
    Ok(())
}

/// The libraries of ONNX Runtime for CUDA and WebGPU, and Python's modules for comparisons.
fn libraries(stage: &Path) -> Result<()> {
    // Not TensorRT's provider, and none of CUDA's libraries, which are NVIDIA's and many times larger.
    let is_wanted = |name: &str| {
        !name.starts_with("lib") || name.starts_with("libonnxruntime") && !name.contains("tensorrt")
    };
    let cuda = device_library::fetch(DeviceProvider::Cuda, None, false)?;
    let modules = cuda
        .ancestors()
        .nth(2)
        .context("the library is not in a package")?;
    copy_folder(modules, &stage.join("python/onnxruntime"), is_wanted)?;
    let genai = target().join("cuda/genai");
    if !genai.join("onnxruntime_genai").is_dir() {
        eprintln!("Fetching onnxruntime-genai for CUDA …");
        let tags = wheels::python_tags(Platform::LinuxX64.tag());
        wheels::fetch("gpu-tools.txt", &tags, &genai)?;
    }
    copy_folder(
        &genai.join("onnxruntime_genai"),
        &stage.join("python/onnxruntime_genai"),
        |_| true,
    )?;
    let webgpu = device_library::fetch(DeviceProvider::Webgpu, None, false)?;
    let name = webgpu.file_name().context("the library has a name")?;
    copy_file(&webgpu, &stage.join("webgpu/onnxruntime/capi").join(name))
}

/// The measured models: graphs, and recipes of their weights.
fn models(stage: &Path) -> Result<()> {
    let interpreter = python::environment("model-tools")?;
    for (name, shape) in MODELS {
        run(Command::new(&interpreter)
            .arg("-B")
            .arg(root().join("models/export/random_recipe.py"))
            .arg(stage.join("models").join(name))
            .args(["--precision", "f16", "--tokenizer"])
            .arg(root().join("models/demo"))
            .args(shape))?;
    }
    Ok(())
}

/// The commit that is packed; empty where git does not say.
fn commit() -> String {
    let described = Command::new("git")
        .args(["describe", "--always", "--dirty", "--abbrev=12"])
        .current_dir(root())
        .output();
    described
        .map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned())
        .unwrap_or_default()
}
