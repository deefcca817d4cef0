//! Wheels of PyPI, fetched by pip with their hashes and unpacked.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::process::{root, run, works};

/// pip's arguments for wheels of Python 3.12 on the platform of this tag.
pub(crate) fn python_tags(platform: &str) -> [&str; 8] {
    [
        "--python-version",
        "3.12",
        "--implementation",
        "cp",
        "--abi",
        "cp312",
        "--platform",
        platform,
    ]
}

/// Fetches the wheels of `xtask/REQUIREMENTS`, without what they depend on, and unpacks them into `folder`; `tags` are pip's
/// arguments for the platform.
pub(crate) fn fetch(requirements: &str, tags: &[&str], folder: &Path) -> Result<()> {
    let python = python()?;
    let download = folder.join("download");
    std::fs::create_dir_all(&download).with_context(|| format!("{} can't be made", download.display()))?;
    let arguments = [
        "-m",
        "pip",
        "download",
        "-q",
        "--no-deps",
        "--only-binary=:all:",
        "--require-hashes",
    ];
    run(Command::new(python)
        .args(arguments)
        .args(tags)
        .arg("-d")
        .arg(&download)
        .arg("-r")
        .arg(root().join("xtask").join(requirements)))
    .context("pip failed; is python3-pip installed, and is there a network?")?;
    let mut unpacked = 0;
    for entry in std::fs::read_dir(&download)? {
        let wheel = entry?.path();
        if wheel.extension().is_some_and(|extension| extension == "whl") {
            run(Command::new(python)
                .args(["-m", "zipfile", "-e"])
                .arg(&wheel)
                .arg(folder))?;
            unpacked += 1;
        }
    }
    std::fs::remove_dir_all(&download)?;
    if unpacked == 0 {
        bail!("pip downloaded no wheel");
    }
    Ok(())
}

fn python() -> Result<&'static str> {
    ["python3", "python"]
        .into_iter()
        .find(|program| works(program, "--version"))
        .context("Python 3 was not found; install python3 and python3-pip, or set ORT_DYLIB_PATH to an ONNX Runtime library")
}
