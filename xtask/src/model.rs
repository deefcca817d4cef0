//! Models with random weights: of the full shape of Phi-3.5-mini, Phi-3.5-MoE and Phi-3.5-vision (`cargo xtask bench-model`), and
//! a small one with mini's context.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, bail, ensure};
use clap::{Args, ValueEnum};

use crate::process::{root, run, target};
use crate::python;

/// What `cargo xtask bench-model` writes.
#[derive(Args)]
pub(crate) struct BenchModelArgs {
    /// The model whose shape it has.
    #[arg(long, value_enum, default_value = "mini")]
    family: Family,
    /// How many layers the decoder has; the real models have 32.
    #[arg(long, default_value = "32", value_parser = clap::value_parser!(u32).range(2..=64))]
    layers: u32,
    /// How many layers the vision encoder has, of which all but the last are used [default: 24, as the real model].
    #[arg(long, value_parser = clap::value_parser!(u32).range(2..=64))]
    vision_layers: Option<u32>,
    /// How many values of `moe` share a scale [default: 128; with 32 the folder is a sixth larger].
    #[arg(long, value_parser = ["32", "128"])]
    block: Option<String>,
    /// Write one GGUF file for llama.cpp, of random Q4_0 blocks, instead of a folder.
    #[arg(long)]
    gguf: bool,
    /// The folder to write, or the file.
    dir: PathBuf,
}

/// A model of the Phi-3.5 family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Family {
    /// Phi-3.5-mini.
    Mini,
    /// Phi-3.5-MoE: sixteen experts, in the form for processors.
    Moe,
    /// Phi-3.5-vision: a vision encoder, an embedding graph, and mini's decoder.
    Vision,
}

/// Writes what the arguments name.
pub(crate) fn bench_model(args: &BenchModelArgs) -> Result<()> {
    ensure!(
        args.family == Family::Vision || args.vision_layers.is_none(),
        "--vision-layers is for --family vision: a text model has no vision encoder"
    );
    ensure!(
        args.block.is_none() || (args.family == Family::Moe && !args.gguf),
        "--block is for folders of --family moe: the others have blocks of one length"
    );
    match (args.gguf, args.family) {
        (true, Family::Vision) => {
            bail!("--gguf writes --family mini and moe: llama.cpp can't run Phi-3.5-vision")
        }
        (true, Family::Mini) => write_gguf(&args.dir, args.layers),
        (true, Family::Moe) => write_moe_gguf(&args.dir, args.layers),
        (false, Family::Mini) => write(&args.dir, args.layers),
        (false, Family::Moe) => write_moe(&args.dir, args.layers, args.block.as_deref().unwrap_or("128")),
        (false, Family::Vision) => write_vision(&args.dir, args.layers, args.vision_layers.unwrap_or(24)),
    }
}

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

/// Writes a directory of the model with experts; `block` values of a row share a scale.
fn write_moe(out: &Path, layers: u32, block: &str) -> Result<()> {
    let interpreter = python::environment("model-tools")?;
    eprintln!("Writing {} …", out.display());
    run(Command::new(interpreter)
        .arg(root().join("models/export/random_moe.py"))
        .arg(out)
        .args(["--layers", &layers.to_string(), "--block", block, "--tokenizer"])
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

/// Writes a directory of the vision model: `layers` layers of the decoder and `vision_layers` of the encoder.
pub(crate) fn write_vision(out: &Path, layers: u32, vision_layers: u32) -> Result<()> {
    let interpreter = python::environment("model-tools")?;
    eprintln!("Writing {} …", out.display());
    run(Command::new(interpreter)
        .arg(root().join("models/export/random_vision.py"))
        .arg(out)
        .args(["--layers", &layers.to_string()])
        .args(["--vision-layers", &vision_layers.to_string(), "--tokenizer"])
        .arg(root().join("models/demo")))
}

/// Writes a GGUF file of mini's shape for llama.cpp.
pub(crate) fn write_gguf(out: &Path, layers: u32) -> Result<()> {
    gguf(out, "mini", layers)
}

/// Writes a GGUF file of the shape of the model with experts for llama.cpp (`phimoe`).
fn write_moe_gguf(out: &Path, layers: u32) -> Result<()> {
    gguf(out, "moe", layers)
}

fn gguf(out: &Path, family: &str, layers: u32) -> Result<()> {
    let interpreter = python::environment("llama-tools")?;
    eprintln!("Writing {} …", out.display());
    run(Command::new(interpreter)
        .arg(root().join("models/export/random_gguf.py"))
        .arg(out)
        .args(["--family", family, "--layers", &layers.to_string()]))
}
