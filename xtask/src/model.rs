//! `cargo xtask bench-model`: a model of Phi-3.5-mini's full shape with random weights.

use std::path::Path;
use std::process::Command;

use anyhow::Result;

use crate::process::{root, run};
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

/// Writes a GGUF file of the same shape for llama.cpp.
pub(crate) fn write_gguf(out: &Path, layers: u32) -> Result<()> {
    let interpreter = python::environment("llama-tools")?;
    eprintln!("Writing {} …", out.display());
    run(Command::new(interpreter)
        .arg(root().join("models/export/random_gguf.py"))
        .arg(out)
        .args(["--layers", &layers.to_string()]))
}
