//! `cargo xtask package`: the .deb and the .rpm.

mod links;
pub(crate) mod sbom;
pub(crate) mod stage;

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::cross_cargo::{TRIPLE, cargo_for_aarch64};
use crate::library::Platform;
use crate::process::{cargo, root, run, target, works};
use crate::tools::tool;

const CARGO_DEB: &str = "3.8.0";
const CARGO_GENERATE_RPM: &str = "0.21.1";

#[derive(Args)]
pub(crate) struct PackageArgs {
    /// The platform to package for; this machine's unless given. For another one its linker must be there.
    #[arg(long, value_enum)]
    platform: Option<Platform>,
    /// Another version than the crates', for trials of upgrades.
    #[arg(long)]
    version: Option<String>,
}

/// Which packages to make.
pub(crate) struct Plan {
    pub(crate) platform: Platform,
    pub(crate) version: String,
    pub(crate) rpm: bool,
    /// Whether the program is optimised; else it is of the development profile, for trials.
    pub(crate) release: bool,
}

/// Makes both packages.
pub(crate) fn package(args: PackageArgs) -> Result<()> {
    let plan = Plan {
        platform: args.platform.map_or_else(Platform::of_this_machine, Ok)?,
        version: args
            .version
            .unwrap_or_else(|| env!("CARGO_PKG_VERSION").to_owned()),
        rpm: true,
        release: true,
    };
    let packages = make(&plan)?;
    for package in packages
        .iter()
        .filter(|package| package.extension().is_some_and(|kind| kind == "deb"))
    {
        judge(package)?;
    }
    for package in packages {
        println!("{}", package.display());
    }
    Ok(())
}

/// What Debian's own checker says of the package; its errors fail.
fn judge(package: &Path) -> Result<()> {
    if !works("lintian", "--version") {
        eprintln!("The package was not checked by lintian, which is not installed (apt install lintian).");
        return Ok(());
    }
    run(Command::new("lintian").args(["--fail-on", "error"]).arg(package))
}

/// Builds, lays out the tree of files and packs it.
pub(crate) fn make(plan: &Plan) -> Result<Vec<PathBuf>> {
    let Some(triple) = plan.platform.linux_triple() else {
        bail!("packages are for Linux; for Windows there is cargo xtask windows zip");
    };
    let program = build(plan, triple)?;
    let tree = root().join("target/stage");
    stage::stage(&tree, plan, &program)?;
    let out = target().join("packages");
    std::fs::create_dir_all(&out).with_context(|| format!("{} can't be made", out.display()))?;
    let mut packages = vec![deb(plan, triple, &out)?];
    if plan.rpm {
        packages.push(rpm(plan, triple, &out)?);
    }
    Ok(packages)
}

/// The programs of a build: for the package, and one that runs here.
pub(crate) struct Programs {
    pub(crate) packaged: PathBuf,
    pub(crate) runnable: PathBuf,
}

fn build(plan: &Plan, triple: &str) -> Result<Programs> {
    let built = |triple: Option<&str>| -> Result<PathBuf> {
        let mut command = if triple == Some(TRIPLE) {
            cargo_for_aarch64()?
        } else {
            cargo()
        };
        command.args(["build", "--locked", "-p", "phi-edge"]);
        if plan.release {
            command.arg("--release");
        }
        let mut folder = target();
        if let Some(triple) = triple {
            command.args(["--target", triple]);
            folder.push(triple);
        }
        run(&mut command)?;
        folder.push(if plan.release { "release" } else { "debug" });
        Ok(folder.join("phi-edge"))
    };
    let runnable = built(None)?;
    let packaged = if Platform::of_this_machine()? == plan.platform {
        runnable.clone()
    } else {
        built(Some(triple)).with_context(|| format!("is there a linker for {triple}?"))?
    };
    Ok(Programs { packaged, runnable })
}

fn deb(plan: &Plan, triple: &str, out: &Path) -> Result<PathBuf> {
    let arch = if triple.starts_with("aarch64") {
        "arm64"
    } else {
        "amd64"
    };
    let package = out.join(format!("phi-edge_{}_{arch}.deb", plan.version));
    run(Command::new(tool("cargo-deb", CARGO_DEB)?)
        .current_dir(root())
        .args([
            "--package",
            "phi-edge",
            "--no-build",
            "--no-strip",
            "--target",
            triple,
        ])
        .args(["--deb-version", &plan.version, "--quiet", "--output"])
        .arg(&package))?;
    Ok(package)
}

fn rpm(plan: &Plan, triple: &str, out: &Path) -> Result<PathBuf> {
    let arch = triple.split('-').next().unwrap_or(triple);
    let package = out.join(format!("phi-edge-{}-1.{arch}.rpm", plan.version));
    run(Command::new(tool("cargo-generate-rpm", CARGO_GENERATE_RPM)?)
        .current_dir(root().join("runtime/daemon"))
        .args(["--target", triple, "--set-metadata"])
        .arg(format!("version = \"{}\"", plan.version))
        .arg("--output")
        .arg(&package))?;
    Ok(package)
}
