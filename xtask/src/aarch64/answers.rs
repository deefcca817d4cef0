//! What the demonstration model answers to one question, here and there.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::library;
use crate::process::{cargo, root, run, target};

pub(super) const QUESTION: &str = "Who are you?";

/// This machine's program, built.
pub(super) fn program_here() -> Result<PathBuf> {
    run(cargo().args(["build", "--locked", "-p", "phi-edge"]))?;
    Ok(target().join("debug/phi-edge"))
}

/// The answer of a program, which uses the library that `ORT_DYLIB_PATH` names, or that of this machine.
pub(super) fn demonstration_answer(program: &mut Command) -> Result<String> {
    if !program.get_envs().any(|(name, _)| name == "ORT_DYLIB_PATH") {
        program.env("ORT_DYLIB_PATH", library::for_this_machine()?);
    }
    let output = program
        .args(["ask", "--model"])
        .arg(root().join("models/demo"))
        .arg(QUESTION)
        // What is tried of the model is remembered by processor, and not among the user's files.
        .env("XDG_CACHE_HOME", target().join("tmp"))
        .stderr(Stdio::inherit())
        .output()
        .context("phi-edge can't be started")?;
    if !output.status.success() {
        bail!("phi-edge ask failed: {}", output.status);
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
