//! `cargo xtask windows zip`: the program for Windows with its library, documents and scripts, in one file.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::build::program;
use crate::library::{self, Platform};
use crate::package::{Plan, sbom, stage};
use crate::process::{output, run, target};

/// The files of the checkout that the zip holds.
const LIST: &str = "xtask/windows/files.txt";
/// The most that a zip may take: more means that something came in by mistake.
const MAX_ZIP_BYTES: u64 = 64 << 20;
/// What an installation does not work without, with the least number of bytes that makes sense.
const NEEDED: &[(&str, u64)] = &[
    ("phi-edge.exe", 10 << 20),
    ("onnxruntime.dll", 10 << 20),
    ("onnxruntime/LICENSE", 1000),
    ("onnxruntime/ThirdPartyNotices.txt", 1000),
    ("config.toml", 1000),
    ("install.ps1", 1000),
    ("uninstall.ps1", 500),
    ("demo-model/model.onnx", 1000),
    ("demo-model/model.onnx.data", 1 << 20),
    ("demo-model/tokenizer.json", 1000),
    ("docs/windows.md", 1000),
    ("LICENSE-MIT", 500),
    ("LICENSE-APACHE", 5000),
    ("sbom.cdx.json", 1000),
];
/// Reads every file of a zip, whose check sums must agree, and prints sizes and names.
const LIST_ZIP: &str = "import sys, zipfile
with zipfile.ZipFile(sys.argv[1]) as archive:
    damaged = archive.testzip()
    if damaged:
        sys.exit(damaged + ' is damaged')
    for entry in archive.infolist():
        print(entry.file_size, entry.filename)
";

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
    check(&zip, &name)?;
    Ok(zip)
}

/// Fails unless the zip is whole, of a size that is expected, and holds what an installation needs, in a folder of its name.
fn check(zip: &Path, name: &str) -> Result<()> {
    let bytes = zip.metadata()?.len();
    ensure!(
        bytes <= MAX_ZIP_BYTES,
        "{} has {bytes} bytes, more than {MAX_ZIP_BYTES}",
        zip.display()
    );
    let listed = output(Command::new("python3").args(["-c", LIST_ZIP]).arg(zip))?;
    let mut sizes = BTreeMap::new();
    for line in listed.lines() {
        let (size, entry) = line.split_once(' ').context("no size and name")?;
        let within = entry.strip_prefix(name).and_then(|entry| entry.strip_prefix('/'));
        let within = within.with_context(|| format!("{} holds {entry}", zip.display()))?;
        sizes.insert(within.to_owned(), size.parse::<u64>()?);
    }
    for (entry, least) in NEEDED {
        let size = sizes.get(*entry).copied().unwrap_or_default();
        ensure!(
            size >= *least,
            "{}: {entry} has {size} bytes, fewer than {least}",
            zip.display()
        );
    }
    Ok(())
}

/// Unpacks a zip that [`zip`] made into `folder`, which is not there yet.
pub(super) fn unpack(zip: &Path, folder: &Path) -> Result<()> {
    let aside = folder.with_extension("unpacked");
    if aside.exists() {
        std::fs::remove_dir_all(&aside)?;
    }
    run(Command::new("python3")
        .args(["-m", "zipfile", "-e"])
        .arg(zip)
        .arg(&aside))?;
    let name = zip.file_stem().context("the zip has no name")?;
    std::fs::rename(aside.join(name), folder)
        .with_context(|| format!("{} holds no folder of its name", zip.display()))?;
    Ok(std::fs::remove_dir(&aside)?)
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

    #[test]
    fn a_zip_is_refused_that_lacks_something_holds_something_else_or_is_damaged() {
        let folder = tempfile::tempdir().expect("a folder");
        let zip = folder.path().join("phi.zip");
        // Zeros: a zip of them is small.
        let write = |left_out: &str, beside: Option<&str>| {
            let tree = folder.path().join("phi");
            let _ = std::fs::remove_dir_all(&tree);
            let _ = std::fs::remove_file(&zip);
            for (entry, bytes) in NEEDED.iter().filter(|(entry, _)| *entry != left_out) {
                let file = tree.join(entry);
                std::fs::create_dir_all(file.parent().expect("a folder")).expect("a folder");
                let file = std::fs::File::create(file).expect("a file");
                file.set_len(*bytes).expect("a length");
            }
            std::fs::write(folder.path().join("other"), "").expect("a file");
            let mut python = Command::new("python3");
            python
                .args(["-m", "zipfile", "-c"])
                .arg(&zip)
                .arg("phi")
                .args(beside);
            run(python.current_dir(folder.path())).expect("a zip");
        };
        write("", None);
        check(&zip, "phi").expect("complete");
        unpack(&zip, &folder.path().join("there")).expect("unpacked");
        assert!(folder.path().join("there/docs/windows.md").is_file());

        let refused = || check(&zip, "phi").expect_err("refused").to_string();
        write("onnxruntime.dll", None);
        assert!(refused().contains("onnxruntime.dll has 0 bytes"), "{}", refused());
        write("", Some("other"));
        assert!(refused().contains("holds other"), "{}", refused());
        write("", None);
        let mut bytes = std::fs::read(&zip).expect("a zip");
        bytes[100..200].fill(0xff);
        std::fs::write(&zip, bytes).expect("a zip");
        assert!(refused().contains("failed"), "{}", refused());
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
