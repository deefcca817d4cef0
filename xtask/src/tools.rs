//! Cargo subcommands in pinned versions, built under `target/tools`.

use std::path::PathBuf;

use anyhow::Result;

use crate::process::{cargo, run, target};

/// The program, built if it is not there yet.
pub(crate) fn tool(name: &str, version: &str) -> Result<PathBuf> {
    // The folders of cargo-deny bear its version alone, from when it was the only one.
    let folder = target().join("tools").join(if name == "cargo-deny" {
        version.to_owned()
    } else {
        format!("{name}-{version}")
    });
    let program = folder
        .join("bin")
        .join(format!("{name}{}", std::env::consts::EXE_SUFFIX));
    if !program.exists() {
        eprintln!("Building {name} {version} …");
        run(cargo()
            .args([
                "install",
                name,
                "--quiet",
                "--locked",
                "--debug",
                "--version",
                version,
                "--root",
            ])
            .arg(&folder)
            .env("CARGO_TARGET_DIR", target().join("tools/build")))?;
    }
    Ok(program)
}
