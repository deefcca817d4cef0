//! llama.cpp's server, and a model for it.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::process::{run, target};
use crate::{model, python};

/// The package that carries llama.cpp's source; its version decides llama.cpp's.
const PACKAGE: &str = "llama-cpp-python==0.3.36";

/// The processor that the server is built for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Processor {
    /// This one, with all that it has.
    Own,
    /// One with AVX2, FMA and F16C, and no more.
    Avx2,
}

impl Processor {
    /// The folder of its build.
    fn build(self) -> &'static str {
        match self {
            Self::Own => "build",
            Self::Avx2 => "build-avx2",
        }
    }

    fn options(self) -> Vec<String> {
        match self {
            Self::Own => own_features(),
            Self::Avx2 => {
                let off = [
                    "NATIVE",
                    "AVX_VNNI",
                    "AVX512",
                    "AVX512_VBMI",
                    "AVX512_VNNI",
                    "AVX512_BF16",
                ];
                let on = ["AVX", "AVX2", "FMA", "F16C", "BMI2"];
                let off = off.map(|name| format!("-DGGML_{name}=OFF"));
                off.into_iter()
                    .chain(on.map(|name| format!("-DGGML_{name}=ON")))
                    .collect()
            }
        }
    }
}

/// The server, built under target/ where it is not there yet. Takes some minutes.
pub(crate) fn server(processor: Processor) -> Result<PathBuf> {
    let folder = target().join("llama");
    let build = folder.join(processor.build());
    let server = build
        .join("bin")
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
        .arg(&build)
        .args(["-G", "Ninja", "-DCMAKE_BUILD_TYPE=Release"])
        .args(processor.options())
        .args([
            "-DLLAMA_CURL=OFF",
            "-DLLAMA_OPENSSL=OFF",
            "-DLLAMA_BUILD_TESTS=OFF",
        ]))?;
    run(Command::new(tools.join("cmake"))
        .env("PATH", &path)
        .arg("--build")
        .arg(&build)
        .args(["--target", "llama-server"]))?;
    Ok(server)
}

/// What this processor can do, for the build.
///
/// Not `-march=native`: a virtual machine may show AMX and not let anybody use it, and the server then dies of it.
fn own_features() -> Vec<String> {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::is_x86_feature_detected as has;
        let features = [
            ("AVX", has!("avx")),
            ("AVX2", has!("avx2")),
            ("FMA", has!("fma")),
            ("F16C", has!("f16c")),
            ("BMI2", has!("bmi2")),
            ("AVX_VNNI", has!("avxvnni")),
            (
                "AVX512",
                has!("avx512f")
                    && has!("avx512cd")
                    && has!("avx512vl")
                    && has!("avx512dq")
                    && has!("avx512bw"),
            ),
            ("AVX512_VBMI", has!("avx512vbmi")),
            ("AVX512_VNNI", has!("avx512vnni")),
            ("AVX512_BF16", has!("avx512bf16")),
        ];
        let switch = |(name, on)| format!("-DGGML_{name}={}", if on { "ON" } else { "OFF" });
        let mut options = vec!["-DGGML_NATIVE=OFF".to_owned()];
        options.extend(features.map(switch));
        options
    }
    #[cfg(not(target_arch = "x86_64"))]
    vec!["-DGGML_NATIVE=ON".to_owned()]
}

/// A GGUF of the bench model's shape.
pub(crate) fn model() -> Result<PathBuf> {
    let file = target().join("bench-model.gguf");
    if !file.exists() {
        model::write_gguf(&file, 32)?;
    }
    Ok(file)
}
