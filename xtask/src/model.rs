//! Models with random weights: of Phi-3.5-mini's full shape (`cargo xtask bench-model`), and a small one with its context.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;

use crate::process::{root, run, target};
use crate::python;

/// Writes the model directory `out` with `layers` layers.
pub(crate) fn write(out: &Path, layers: u32) -> Result<()> {
    let interpreter = python::environment("model-tools")?;
    eprintln!("Writing {} …", out.display());
    run(Command::new(interpreter)
        .arg(root().join("models/export/random_model.py"))
        .arg(out)
        .args(["--layers", &layers.to_string(), "--tokenizer"])
        .arg(root().join("models/demo")))
}

/// The model for measurements of accuracy at long contexts, written where it is absent: two layers, four heads of 96,
/// 131,072 positions with LongRoPE from 4,096 on, the demonstration's tokenizer. 6 KiB of keys and values of 32 bits a token.
pub(crate) fn long_context() -> Result<PathBuf> {
    let out = target().join("long-context-model");
    if out.join("manifest.json").exists() {
        return Ok(out);
    }
    let interpreter = python::environment("model-tools")?;
    eprintln!("Writing {} …", out.display());
    run(Command::new(interpreter)
        .arg(root().join("models/export/random_model.py"))
        .arg(&out)
        .args([
            "--layers", "2", "--hidden", "384", "--inner", "512", "--heads", "4", "--vocab", "704",
            "--block", "32", "--sharp",
        ])
        .arg("--tokenizer")
        .arg(root().join("models/demo")))?;
    Ok(out)
}

/// Writes a GGUF file of the same shape for llama.cpp.
pub(crate) fn write_gguf(out: &Path, layers: u32) -> Result<()> {
    let interpreter = python::environment("llama-tools")?;
    eprintln!("Writing {} …", out.display());
    run(Command::new(interpreter)
        .arg(root().join("models/export/random_gguf.py"))
        .arg(out)
        .args(["--layers", &layers.to_string()]))
}
