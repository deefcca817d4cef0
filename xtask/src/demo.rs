//! `cargo xtask demo`: everything at work on one machine, with nothing to set up.

use std::process::Command;

use anyhow::Result;

use crate::library;
use crate::process::{cargo, root, run, target};

/// Fetches the library, builds, and runs the demonstration.
pub(crate) fn demo() -> Result<()> {
    let library = library::for_this_machine()?;
    run(cargo().args(["build", "--locked", "-p", "phi-edge", "-p", "phi-edge-demo"]))?;
    run(Command::new(target().join("debug/phi-edge-demo"))
        .arg(root().join("models/demo"))
        .env("ORT_DYLIB_PATH", library))
}
