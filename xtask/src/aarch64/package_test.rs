//! `cargo xtask aarch64-package-test`: the arm64 package in a Debian of that architecture, installed and asked.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::aarch64::answers::{QUESTION, demonstration_answer, program_here};
use crate::aarch64::binary_format::BinaryFormat;
use crate::debian_root;
use crate::library::Platform;
use crate::package::{self, Plan};
use crate::process::{output, run, target};

const SUITE: &str = "bookworm";
/// What the package depends on.
const PACKAGES: &str = "libgcc-s1,libstdc++6,systemd";
const DEMO_MODEL: &str = "/usr/share/phi-edge/demo-model";

/// Makes the package and installs it; `phi-edge ask` must answer there as it does here. Builds of the development profile do, for
/// the packages differ by nothing else.
pub(crate) fn package_test() -> Result<()> {
    let plan = Plan {
        platform: Platform::LinuxArm64,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        rpm: true,
        release: false,
    };
    let packages = package::make(&plan)?;
    let package = packages.first().context("no package was made")?;
    let here = demonstration_answer(&mut Command::new(program_here()?))?;
    let _emulated = BinaryFormat::register()?;
    let system = debian_root::make_foreign(&target().join("aarch64"), SUITE, PACKAGES, "arm64")?;
    std::fs::copy(package, system.join("phi-edge.deb"))?;
    run(chroot(&system).args(["dpkg", "--install", "/phi-edge.deb"]))
        .context("the package can't be installed")?;
    let version = output(chroot(&system).args(["phi-edge", "--version"]))?;
    let files = output(chroot(&system).args(["dpkg", "--listfiles", "phi-edge"]))?;
    for part in [DEMO_MODEL, "/usr/lib/phi-edge/libonnxruntime.so", "sbom.cdx.json"] {
        if !files.contains(part) {
            bail!("the package has no {part}");
        }
    }
    let there = output(chroot(&system).args(["phi-edge", "ask", "--model", DEMO_MODEL, QUESTION]))?;
    if there != here {
        bail!("it answers {there:?} where this machine answers {here:?}");
    }
    run(chroot(&system).args(["dpkg", "--purge", "phi-edge"]))?;
    println!("{} answers on arm64 as here: {}", version.trim(), there.trim());
    Ok(())
}

/// A command below the changed root, with the kernel's processes in it and mounts of its own.
fn chroot(system: &Path) -> Command {
    let mut command = Command::new("unshare");
    command
        .args(["--mount", "sh", "-c"])
        .arg("mount -t proc proc \"$0/proc\" && exec chroot \"$0\" \"$@\"")
        .arg(system)
        .env_remove("ORT_DYLIB_PATH")
        .env("DEBIAN_FRONTEND", "noninteractive")
        .env("LC_ALL", "C")
        .env("HOME", "/root")
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
    command
}
