//! Packages of Node.js under `target/` for the examples' tests.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};

use crate::process::{root, run, target};

/// The `node_modules` folder that has the packages of `xtask/NAME.txt`.
pub(crate) fn modules(name: &str) -> Result<PathBuf> {
    let list = root().join("xtask").join(format!("{name}.txt"));
    let wanted =
        std::fs::read_to_string(&list).with_context(|| format!("{} can't be read", list.display()))?;
    let folder = target().join("node").join(name);
    let modules = folder.join("node_modules");
    let stamp = folder.join("installed.txt");
    if modules.exists() && std::fs::read_to_string(&stamp).is_ok_and(|installed| installed == wanted) {
        return Ok(modules);
    }
    eprintln!("Installing Node.js packages for {name} …");
    std::fs::create_dir_all(&folder)?;
    // None of them needs to run anything when it is installed.
    run(Command::new("npm")
        .args([
            "install",
            "--no-save",
            "--no-audit",
            "--no-fund",
            "--ignore-scripts",
            "--loglevel=error",
            "--prefix",
        ])
        .arg(&folder)
        .args(wanted.split_whitespace()))
    .context("no Node.js packages could be installed; install nodejs (18 or later) and npm")?;
    std::fs::write(&stamp, wanted)?;
    Ok(modules)
}
