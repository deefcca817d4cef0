//! llama.cpp's server, and a model for it.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::process::{run, target};
use crate::{model, python};

/// The package that carries llama.cpp's source; its version decides llama.cpp's.
const PACKAGE: &str = "llama-cpp-python==0.3.36";

/// The server, built under target/ where it is not there yet. Takes some minutes.
pub(crate) fn server() -> Result<PathBuf> {
    let folder = target().join("llama");
    let server = folder
        .join("build/bin")
        .join(format!("llama-server{}", std::env::consts::EXE_SUFFIX));
    if server.exists() {
        return Ok(server);
    }
    let interpreter = python::environment("llama-tools")?;
    let tools = interpreter
        .parent()
        .context("an interpreter lies in a folder")?
        .to_path_buf();
    std::fs::create_dir_all(&folder)?;
    eprintln!("Building llama.cpp's server …");
    let name = PACKAGE.split("==").next().unwrap_or(PACKAGE);
    run(Command::new(&interpreter)
        .args(["-m", "pip", "download", "-q", "--no-deps", "--no-build-isolation"])
        .args(["--no-binary", name, PACKAGE, "-d"])
        .arg(&folder))?;
    let archive = std::fs::read_dir(&folder)?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.extension().is_some_and(|extension| extension == "gz"));
    let Some(archive) = archive else {
        bail!("{PACKAGE} has no source package");
    };
    run(Command::new(&interpreter)
        .args(["-m", "tarfile", "-e"])
        .args([&archive, &folder]))?;
    let source = archive.with_extension("").with_extension("");
    // Scripts of a virtual environment; ninja is found beside cmake.
    let mut path = vec![tools.clone()];
    path.extend(std::env::split_paths(
        &std::env::var_os("PATH").unwrap_or_default(),
    ));
    let path = std::env::join_paths(path)?;
    run(Command::new(tools.join("cmake"))
        .env("PATH", &path)
        .arg("-S")
        .arg(source.join("vendor/llama.cpp"))
        .arg("-B")
        .arg(folder.join("build"))
        .args(["-G", "Ninja", "-DCMAKE_BUILD_TYPE=Release", "-DGGML_NATIVE=ON"])
        .args([
            "-DLLAMA_CURL=OFF",
            "-DLLAMA_OPENSSL=OFF",
            "-DLLAMA_BUILD_TESTS=OFF",
        ]))?;
    run(Command::new(tools.join("cmake"))
        .env("PATH", &path)
        .arg("--build")
        .arg(folder.join("build"))
        .args(["--target", "llama-server"]))?;
    Ok(server)
}

/// A GGUF of the bench model's shape.
pub(crate) fn model() -> Result<PathBuf> {
    let file = target().join("bench-model.gguf");
    if !file.exists() {
        model::write_gguf(&file, 32)?;
    }
    Ok(file)
}
