//! The unit tests of the crates, built for Windows: programs beside `phi-edge.exe`.

use anyhow::{Result, bail, ensure};

use crate::wine::{Wine, staged};

/// How the names of the staged programs end.
const SUFFIX: &str = "-tests.exe";

pub(crate) fn run(wine: &Wine) -> Result<()> {
    let names = wine.staged_files(SUFFIX)?;
    ensure!(!names.is_empty(), "no unit tests are staged");
    let mut failed = Vec::new();
    for name in &names {
        println!("{name}:");
        let status = wine
            .windows(&staged(name))
            .arg("--test-threads=2")
            .env("ORT_DYLIB_PATH", staged("onnxruntime.dll"))
            .status()?;
        if !status.success() {
            failed.push(name.trim_end_matches(SUFFIX));
        }
    }
    if !failed.is_empty() {
        bail!("unit tests failed under wine: {}", failed.join(", "));
    }
    Ok(())
}
