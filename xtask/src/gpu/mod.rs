//! `cargo xtask gpu pack`: a kit that checks phi-edge on a machine with an NVIDIA GPU and nothing else: no Rust, network or pip.

mod contents;
mod kit;
mod parts;

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::{Args, Subcommand};

use crate::process::{root, target};

/// What `cargo xtask gpu` does.
#[derive(Subcommand)]
pub(crate) enum GpuCommand {
    /// Write folders of at most 48 MiB each, with programs, libraries, models and gpu-check.sh, which checks phi-edge on a machine
    /// with an NVIDIA GPU (docs/gpu.md).
    Pack(PackArgs),
}

#[derive(Args)]
pub(crate) struct PackArgs {
    /// The folder to write; what it held is gone.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// A built phi-edge to pack; a release is built unless given.
    #[arg(long, value_name = "FILE")]
    binary: Option<PathBuf>,
    /// The folder of the models with golden outputs; ../shared/fixtures unless given.
    #[arg(long, value_name = "DIR")]
    fixtures: Option<PathBuf>,
}

/// Runs the command.
pub(crate) fn gpu(command: &GpuCommand) -> Result<()> {
    match command {
        GpuCommand::Pack(args) => pack(args),
    }
}

/// Writes the kit and prints where it is.
fn pack(args: &PackArgs) -> Result<()> {
    let out = args.out.clone().unwrap_or_else(|| target().join("gpu-pack"));
    let fixtures = args
        .fixtures
        .clone()
        .unwrap_or_else(|| root().join("../shared/fixtures"));
    let stage = target().join("gpu-stage");
    contents::stage(&stage, args.binary.as_deref(), &fixtures)?;
    let folders = kit::write(&stage, &out, parts::FOLDER_BYTES)?;
    std::fs::remove_dir_all(&stage).context("the stage can't be removed")?;
    println!("{} ({folders} folders of at most 48 MiB)", out.display());
    Ok(())
}
