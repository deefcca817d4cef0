//! `cargo xtask windows zip`: the program for Windows with its library, documents and scripts, in one file.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::build::program;
use crate::library::{self, Platform};
use crate::package::{Plan, sbom, stage};
use crate::process::{run, target};

/// The files of the checkout that the zip holds.
const LIST: &str = "xtask/windows/files.txt";
/// The most that a zip may take: more means that something came in by mistake.
const MAX_ZIP_BYTES: u64 = 64 << 20;

/// Makes the zip and returns its path.
pub(super) fn zip() -> Result<PathBuf> {
    let plan = Plan {
        platform: Platform::WindowsX64,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        rpm: false,
        release: true,
    };
    let name = format!("phi-edge-{}-windows-x64", plan.version);
    let out = target().join("packages");
    let tree = out.join(&name);
    if tree.exists() {
        std::fs::remove_dir_all(&tree).with_context(|| format!("{} can't be emptied", tree.display()))?;
    }
    std::fs::create_dir_all(&tree)?;
    stage::listed(LIST, &tree)?;
    let packed = tree.join("phi-edge.exe");
    std::fs::copy(program(true)?, &packed)?;
    run(Command::new("x86_64-w64-mingw32-strip").arg(&packed))?;
    library(&tree)?;
    std::fs::write(tree.join("sbom.cdx.json"), sbom::cyclonedx(&plan)?)?;

    let zip = out.join(format!("{name}.zip"));
    if zip.exists() {
        std::fs::remove_file(&zip)?;
    }
    run(Command::new("python3")
        .args(["-m", "zipfile", "-c"])
        .arg(&zip)
        .arg(&name)
        .current_dir(&out))
    .context("is python3 installed?")?;
    std::fs::remove_dir_all(&tree)?;
    let bytes = zip.metadata()?.len();
    if bytes > MAX_ZIP_BYTES {
        bail!("{} has {bytes} bytes, more than {MAX_ZIP_BYTES}", zip.display());
    }
    Ok(zip)
}

/// ONNX Runtime with the notices of its authors.
fn library(tree: &Path) -> Result<()> {
    let library = library::fetch(Platform::WindowsX64)?;
    std::fs::copy(&library, tree.join("onnxruntime.dll"))?;
    let wheel = library
        .ancestors()
        .nth(2)
        .context("the library lies in no wheel")?;
    let notices = tree.join("onnxruntime");
    std::fs::create_dir_all(&notices)?;
    for name in ["LICENSE", "ThirdPartyNotices.txt"] {
        std::fs::copy(wheel.join(name), notices.join(name))
            .with_context(|| format!("ONNX Runtime's {name} can't be copied"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::process::root;

    /// The list's places with their sources.
    fn listed() -> BTreeMap<String, String> {
        let text = std::fs::read_to_string(root().join(LIST)).expect("the list");
        let mut places = BTreeMap::new();
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let words: Vec<&str> = line.split_whitespace().collect();
            let [source, place] = words[..] else {
                panic!("a source and a place: {line}");
            };
            let again = places.insert(place.to_owned(), source.to_owned());
            assert!(again.is_none(), "{place} twice");
        }
        places
    }

    fn bytes(path: &Path) -> u64 {
        if path.is_file() {
            return path.metadata().expect("a file").len();
        }
        let entries = std::fs::read_dir(path).expect("a folder");
        entries.map(|entry| bytes(&entry.expect("an entry").path())).sum()
    }

    #[test]
    fn the_zip_holds_what_an_installation_needs_and_stays_small() {
        let places = listed();
        let mut all = 0;
        for (place, source) in &places {
            let path = root().join(source);
            assert!(path.exists(), "{source} is not there");
            assert!(place.starts_with('/'), "{place}");
            assert_eq!(
                path.is_dir(),
                source.ends_with('/') && place.ends_with('/'),
                "{source}"
            );
            all += bytes(&path);
        }
        for place in [
            "/config.toml",
            "/install.ps1",
            "/uninstall.ps1",
            "/demo-model/",
            "/docs/windows.md",
            "/LICENSE-MIT",
            "/LICENSE-APACHE",
        ] {
            assert!(places.contains_key(place), "{place}");
        }
        // Beside program and library, which take 25 MB compressed.
        assert!(all < 16 << 20, "{all} bytes of documents and models");
    }

    /// What the packages for Linux explain is explained here, too.
    #[test]
    fn the_documents_are_those_of_the_packages() {
        let packages = std::fs::read_to_string(root().join("systemd/files.txt")).expect("the list");
        let here = listed();
        for source in packages
            .split_whitespace()
            .filter(|word| word.starts_with("docs/"))
        {
            assert!(
                here.values().any(|listed| listed == source),
                "{source} is missing"
            );
        }
    }

    #[test]
    fn the_scripts_know_the_service_and_its_folders() {
        let read =
            |name: &str| std::fs::read_to_string(root().join("xtask/windows").join(name)).expect("a script");
        let registration = root().join("runtime/daemon/src/commands/system_service/registration.rs");
        let registration = std::fs::read_to_string(registration).expect("a source");
        assert!(registration.contains(r"NT SERVICE\phi-edge"));
        for script in [read("install.ps1"), read("uninstall.ps1")] {
            assert!(script.starts_with("#Requires -RunAsAdministrator\n"));
            assert!(script.contains("$name = 'phi-edge'") && script.contains("$Env:ProgramData"));
        }
        for folder in ["conf.d", "rules.d", "models", "store", "log"] {
            assert!(read("install.ps1").contains(&format!("'{folder}'")), "{folder}");
        }
    }
}
