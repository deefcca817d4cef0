//! The standard library of a target that the toolchain does not have, built from Debian's rust-src of the compiler's version.
//!
//! Nothing of the toolchain is touched: the library lies in a folder below `target/` that the compiler is given as `--sysroot`.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::debian_package;
use crate::process::{cargo, output, run, target};

/// The suite of Debian whose rust-src has current versions.
const SUITE: &str = "trixie-backports";

/// An empty crate, for which cargo builds the standard library.
const MANIFEST: &str = "[package]\nname = \"nothing\"\nversion = \"0.0.0\"\nedition = \"2024\"\n\n[lib]\npath = \"lib.rs\"\n\n[workspace]\n";

/// The compiler that cargo uses.
struct Compiler {
    version: String,
    sysroot: PathBuf,
}

/// Returns the folder for the compiler's `--sysroot` that has the standard library of `triple`, built if it is not there yet; none
/// where the toolchain has it.
pub(crate) fn sysroot(triple: &str) -> Result<Option<PathBuf>> {
    let compiler = compiler()?;
    if libraries(&compiler.sysroot, triple).is_dir() {
        return Ok(None);
    }
    let folder = target().join("standard-library").join(&compiler.version);
    let sysroot = folder.join("sysroot");
    let place = libraries(&sysroot, triple);
    let stamp = folder.join(format!("{triple}.stamp"));
    if stamp.is_file() {
        return Ok(Some(sysroot));
    }
    let source = source(&folder, &compiler.version)?;
    eprintln!("Building the standard library for {triple} …");
    let built = build(&folder, &source, triple)?;
    if place.exists() {
        std::fs::remove_dir_all(&place)?;
    }
    std::fs::create_dir_all(&place)?;
    for entry in std::fs::read_dir(&built)? {
        let file = entry?.path();
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        if name.ends_with(".rlib") && !name.starts_with("libnothing") {
            std::fs::copy(&file, place.join(name.as_ref()))?;
        }
    }
    if triple.ends_with("windows-gnu") {
        start_files(&source, triple, &place)?;
    }
    std::fs::remove_dir_all(folder.join("build"))?;
    std::fs::write(stamp, "")?;
    Ok(Some(sysroot))
}

fn libraries(sysroot: &Path, triple: &str) -> PathBuf {
    sysroot.join("lib/rustlib").join(triple).join("lib")
}

fn compiler() -> Result<Compiler> {
    let sysroot = output(Command::new("rustc").args(["--print", "sysroot"]))?;
    let described = output(Command::new("rustc").arg("-vV"))?;
    let version = described
        .lines()
        .find_map(|line| line.strip_prefix("release: "))
        .context("rustc does not tell its version")?;
    Ok(Compiler {
        version: version.to_owned(),
        sysroot: PathBuf::from(sysroot.trim()),
    })
}

/// Returns the folder of the standard library's source, fetched if it is not there yet.
fn source(folder: &Path, version: &str) -> Result<PathBuf> {
    let library = folder.join("source/library");
    if library.join("Cargo.toml").is_file() {
        return Ok(library);
    }
    eprintln!("Fetching the source of the standard library {version} …");
    let download = folder.join("download");
    let is_wanted = |package: &str| package.starts_with(&format!("{version}+"));
    let package = debian_package::download(SUITE, "rust-src", is_wanted, &download)
        .context("the standard library can't be built; add the target with rustup instead")?;
    let pattern = format!("*/rustc-{version}/library/*");
    debian_package::unpack(&package, &pattern, 4, &folder.join("source"))?;
    std::fs::remove_dir_all(&download)?;
    if !library.join("Cargo.toml").is_file() {
        bail!("Debian's rust-src holds no library of {version}");
    }
    Ok(library)
}

/// Builds the standard library and returns the folder of its parts.
fn build(folder: &Path, source: &Path, triple: &str) -> Result<PathBuf> {
    let package = folder.join("nothing");
    std::fs::create_dir_all(&package)?;
    std::fs::write(package.join("Cargo.toml"), MANIFEST)?;
    std::fs::write(package.join("lib.rs"), "#![no_std]\n")?;
    let out = folder.join("build");
    run(cargo()
        .args(["build", "--release", "--quiet", "--target", triple])
        .arg("-Zbuild-std=std,panic_unwind,panic_abort,proc_macro,test")
        .arg("--manifest-path")
        .arg(package.join("Cargo.toml"))
        .env("CARGO_TARGET_DIR", &out)
        .env("__CARGO_TESTS_ONLY_SRC_ROOT", source)
        .env("RUSTC_BOOTSTRAP", "1")
        // Release builds of the program are linked with lto.
        .env("RUSTFLAGS", "-Cembed-bitcode=yes"))
    .with_context(|| format!("the standard library for {triple} was not built"))?;
    Ok(out.join(triple).join("release/deps"))
}

/// What MinGW's linker is given before and after all else.
fn start_files(source: &Path, triple: &str, place: &Path) -> Result<()> {
    for name in ["rsbegin", "rsend"] {
        run(Command::new("rustc")
            .args(["--target", triple, "--crate-type", "lib", "-O", "--emit"])
            .arg(format!("obj={}", place.join(format!("{name}.o")).display()))
            .arg(source.join("rtstartup").join(format!("{name}.rs")))
            .env("RUSTC_BOOTSTRAP", "1"))?;
    }
    Ok(())
}
