//! A Debian of its own in a folder, made by debootstrap: for what needs a newer one than this machine's.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::process::{run, works};

/// Returns the root of `suite` with these packages, separated by commas, in a folder below `folder`. It is made once; a change of
/// what it holds makes it again.
pub(crate) fn make(folder: &Path, suite: &str, packages: &str) -> Result<PathBuf> {
    make_with(folder, suite, packages, &[])
}

/// The same of another architecture, whose programs the kernel must be able to run.
pub(crate) fn make_foreign(
    folder: &Path,
    suite: &str,
    packages: &str,
    architecture: &str,
) -> Result<PathBuf> {
    make_with(folder, suite, packages, &[&format!("--arch={architecture}")])
}

fn make_with(folder: &Path, suite: &str, packages: &str, options: &[&str]) -> Result<PathBuf> {
    if !works("debootstrap", "--version") {
        bail!("debootstrap was not found; install debootstrap");
    }
    let (tree, stamp) = (folder.join(suite), folder.join(format!("{suite}.stamp")));
    let recipe = format!("{suite}\n{packages}\n");
    if std::fs::read_to_string(&stamp).is_ok_and(|made| made == recipe) {
        return Ok(tree);
    }
    eprintln!("Making a Debian ({suite}) with {packages} …");
    if tree.exists() {
        std::fs::remove_dir_all(&tree)?;
    }
    std::fs::create_dir_all(folder)?;
    // From the mirror that debootstrap itself knows.
    run(Command::new("debootstrap")
        .args(options)
        .args(["--variant=minbase", &format!("--include={packages}"), suite])
        .arg(&tree)
        .stdout(Stdio::null()))
    .context("debootstrap needs root and a network")?;
    // Downloaded packages are of no use any more.
    let archives = std::fs::read_dir(tree.join("var/cache/apt/archives"))?;
    for file in archives.filter_map(Result::ok).map(|entry| entry.path()) {
        if file.extension() == Some(OsStr::new("deb")) {
            std::fs::remove_file(file)?;
        }
    }
    std::fs::write(&stamp, recipe)?;
    Ok(tree)
}
