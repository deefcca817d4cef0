//! A virtual environment under `target/` for the Python that tests and benchmarks need.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};

use crate::process::{root, run, target};

/// The interpreter of an environment that has the packages of `xtask/NAME.txt`.
pub(crate) fn environment(name: &str) -> Result<PathBuf> {
    let requirements = root().join("xtask").join(format!("{name}.txt"));
    let wanted = std::fs::read_to_string(&requirements)
        .with_context(|| format!("{} can't be read", requirements.display()))?;
    let folder = target().join("python").join(name);
    let interpreter = folder.join(if cfg!(windows) {
        "Scripts/python.exe"
    } else {
        "bin/python"
    });
    let stamp = folder.join("installed.txt");
    if interpreter.exists() && std::fs::read_to_string(&stamp).is_ok_and(|installed| installed == wanted) {
        return Ok(interpreter);
    }
    eprintln!("Preparing a Python environment for {name} …");
    run(Command::new("python3")
        .args(["-m", "venv", "--clear"])
        .arg(&folder))
    .context("no virtual environment could be made; install python3-venv")?;
    run(Command::new(&interpreter)
        .args(["-m", "pip", "install", "-q", "-r"])
        .arg(&requirements))?;
    std::fs::write(&stamp, wanted)?;
    Ok(interpreter)
}
