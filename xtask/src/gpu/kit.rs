//! The kit's form: an archive in parts, their checksums, and the script that joins and uses them.

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use super::parts;
use crate::process::{root, run};

/// The scripts beside the first part.
const SCRIPTS: [&str; 3] = ["gpu-check.sh", "gpu-steps.sh", "gpu-report.sh"];

/// The list of the parts' checksums, beside the scripts.
const CHECKSUMS: &str = "parts.sha256";

/// What scripts and checksums may take of the first folder.
const SCRIPT_BYTES: u64 = 128 << 10;

/// Writes what is in `stage` to folders of at most `folder_bytes` below `out`, which is emptied before; returns their number.
pub(crate) fn write(stage: &Path, out: &Path, folder_bytes: u64) -> Result<usize> {
    if out.exists() {
        std::fs::remove_dir_all(out).with_context(|| format!("{} can't be emptied", out.display()))?;
    }
    std::fs::create_dir_all(out).with_context(|| format!("{} can't be made", out.display()))?;
    let archive = out.with_extension("tar.gz");
    // The same content gives the same archive.
    run(Command::new("tar")
        .args([
            "--sort=name",
            "--mtime=@0",
            "--owner=0",
            "--group=0",
            "--numeric-owner",
            "-czf",
        ])
        .arg(&archive)
        .arg("-C")
        .arg(stage)
        .arg("."))?;
    let part_bytes = folder_bytes
        .checked_sub(SCRIPT_BYTES)
        .context("folders of this size have no room for the scripts")?;
    let names = parts::split(&archive, out, part_bytes)?;
    ensure_joined(&archive, out, &names)?;
    std::fs::remove_file(&archive)?;
    let Some(first) = names.first().and_then(|name| name.split('/').next()) else {
        bail!("the archive is empty");
    };
    let first = out.join(first);
    for script in SCRIPTS {
        let from = root().join("xtask/gpu").join(script);
        std::fs::copy(&from, first.join(script))
            .with_context(|| format!("{} can't be copied", from.display()))?;
    }
    let sums = Command::new("sha256sum").args(&names).current_dir(out).output();
    let sums = sums.context("sha256sum can't be started; install coreutils")?;
    ensure!(sums.status.success(), "sha256sum failed");
    std::fs::write(first.join(CHECKSUMS), sums.stdout)?;
    parts::check_folders(out, folder_bytes)?;
    Ok(names.len())
}

/// Fails where the parts, one after the other, are not the archive.
fn ensure_joined(archive: &Path, out: &Path, names: &[String]) -> Result<()> {
    let mut whole = File::open(archive)?;
    for name in names {
        let part = std::fs::read(out.join(name))?;
        let mut same = vec![0; part.len()];
        whole
            .read_exact(&mut same)
            .context("the parts are longer than the archive")?;
        ensure!(same == part, "{name} differs from its place in the archive");
    }
    ensure!(
        whole.read(&mut [0])? == 0,
        "the parts are shorter than the archive"
    );
    Ok(())
}

#[cfg(all(test, unix))]
mod tests;
