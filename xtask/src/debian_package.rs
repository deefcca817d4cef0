//! Single packages of Debian, from suites that this machine's own sources need not have.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result};

use crate::process::{output, run};

const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// Downloads the newest version of `package` in `suite` that `is_wanted`, into `folder`, which is emptied before; returns its path.
pub(crate) fn download(
    suite: &str,
    package: &str,
    is_wanted: impl Fn(&str) -> bool,
    folder: &Path,
) -> Result<PathBuf> {
    if folder.exists() {
        std::fs::remove_dir_all(folder)?;
    }
    std::fs::create_dir_all(folder.join("lists/partial"))?;
    std::fs::create_dir_all(folder.join("cache/archives/partial"))?;
    let mirror = mirror()?;
    let sources = folder.join("sources.list");
    std::fs::write(
        &sources,
        format!("deb [signed-by={KEYRING}] {mirror} {suite} main\n"),
    )?;
    // Lists and caches of its own: the machine's sources stay as they are.
    let apt = |program: &str| {
        let mut command = Command::new(program);
        command
            .current_dir(folder)
            .args(["-q", "-o", "APT::Sandbox::User=root"]);
        for (option, value) in [
            ("Dir::Etc::SourceList", sources.as_path()),
            ("Dir::Etc::SourceParts", Path::new("/dev/null")),
            ("Dir::State::Lists", &folder.join("lists")),
            ("Dir::Cache", &folder.join("cache")),
        ] {
            command.arg("-o").arg(format!("{option}={}", value.display()));
        }
        command
    };
    run(apt("apt-get").arg("update").stdout(Stdio::null())).context("is there a network?")?;
    let known = output(apt("apt-cache").args(["madison", package]))?;
    let version = known
        .lines()
        .filter_map(|line| Some(line.split('|').nth(1)?.trim()))
        .find(|version| is_wanted(version))
        .with_context(|| {
            format!("Debian's {suite} has no version of {package} that is needed; it has:\n{known}")
        })?;
    run(apt("apt-get")
        .args(["download", &format!("{package}={version}")])
        .stdout(Stdio::null()))?;
    std::fs::read_dir(folder)?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.extension().is_some_and(|kind| kind == "deb"))
        .context("apt downloaded no package")
}

/// Unpacks what `pattern` names in a package into `folder`, which is emptied before, without the first `strip` parts of each path.
pub(crate) fn unpack(package: &Path, pattern: &str, strip: usize, folder: &Path) -> Result<()> {
    if folder.exists() {
        std::fs::remove_dir_all(folder)?;
    }
    std::fs::create_dir_all(folder)?;
    let mut contents = Command::new("dpkg-deb")
        .arg("--fsys-tarfile")
        .arg(package)
        .stdout(Stdio::piped())
        .spawn()
        .context("dpkg-deb can't be started")?;
    let tar = contents.stdout.take().context("dpkg-deb has no output")?;
    // The folder first: what follows it goes there.
    let unpacked = run(Command::new("tar")
        .arg("-C")
        .arg(folder)
        .args([
            "-x",
            "--wildcards",
            &format!("--strip-components={strip}"),
            pattern,
        ])
        .stdin(tar));
    contents.wait()?;
    unpacked
}

/// The address of the mirror that this machine has Debian itself from.
fn mirror() -> Result<String> {
    let sources = output(Command::new("apt-get").args([
        "indextargets",
        "--format",
        "$(ORIGIN) $(LABEL) $(REPO_URI)",
        "Identifier: Packages",
    ]))?;
    sources
        .lines()
        .find_map(|line| line.strip_prefix("Debian Debian "))
        .map(|mirror| mirror.trim().to_owned())
        .context("apt knows no mirror of Debian; run apt-get update")
}
