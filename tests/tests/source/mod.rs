//! The workspace's Rust source, parsed: files, modules, definitions, and the paths by which files name each other.

// Each test that includes this module uses a part of it.
#![allow(dead_code)]

pub(crate) mod file;
pub(crate) mod imports;
pub(crate) mod modules;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

pub(crate) use file::SourceFile;
pub(crate) use modules::Target;

/// The folder of the workspace: by cargo's variable, so that a built test can be run on another checkout.
pub(crate) fn root() -> PathBuf {
    let tests = std::env::var_os("CARGO_MANIFEST_DIR")
        .map_or_else(|| env!("CARGO_MANIFEST_DIR").into(), PathBuf::from);
    tests
        .parent()
        .expect("tests/ lies in the workspace")
        .to_path_buf()
}

/// All Rust files of the workspace, and the targets that they belong to.
pub(crate) struct Source {
    /// By path relative to the workspace's folder.
    pub(crate) files: BTreeMap<String, SourceFile>,
    pub(crate) targets: Vec<Target>,
}

impl Source {
    /// Parses every `.rs` file below the workspace's folder.
    pub(crate) fn read() -> Self {
        let mut files = BTreeMap::new();
        collect(&root(), &root(), &mut files);
        let targets = targets()
            .into_iter()
            .map(|(package, path)| Target::walk(&package, &path, &files))
            .collect();
        Self { files, targets }
    }

    /// The files that tests alone are built of: below a folder `tests`, or reached by `#[cfg(test)]` modules only.
    pub(crate) fn is_test(&self, path: &str) -> bool {
        let below_tests = path.split('/').any(|part| part == "tests");
        below_tests || (!self.is_production(path) && self.targets.iter().any(|t| t.tests.contains(path)))
    }

    /// The files that no target contains.
    pub(crate) fn orphans(&self) -> Vec<&String> {
        let known: BTreeSet<&String> = self
            .targets
            .iter()
            .flat_map(|target| target.files().chain(&target.tests))
            .collect();
        let loose = self.files.keys().filter(|path| !known.contains(path));
        loose
            .filter(|path| !path.split('/').any(|part| part == "tests"))
            .collect()
    }

    fn is_production(&self, path: &str) -> bool {
        let mut files = self.targets.iter().flat_map(Target::files);
        files.any(|file| file == path)
    }
}

/// Package and main file of every library, binary and example of the workspace.
fn targets() -> Vec<(String, String)> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--no-deps", "--offline"])
        .current_dir(root())
        .output()
        .expect("cargo runs");
    let metadata: Value = serde_json::from_slice(&output.stdout).expect("cargo metadata writes JSON");
    let mut found = Vec::new();
    for package in metadata["packages"].as_array().expect("packages") {
        for target in package["targets"].as_array().expect("targets") {
            if target["kind"] != Value::from(vec!["test"]) {
                let path = PathBuf::from(target["src_path"].as_str().expect("src_path"));
                found.push((
                    package["name"].as_str().expect("name").to_owned(),
                    relative(&path.canonicalize().expect("a target's file exists")),
                ));
            }
        }
    }
    found
}

fn relative(path: &Path) -> String {
    let root = root().canonicalize().expect("the workspace exists");
    let inside = path.strip_prefix(root).expect("a file of the workspace");
    inside.to_string_lossy().replace('\\', "/")
}

fn collect(root: &Path, folder: &Path, files: &mut BTreeMap<String, SourceFile>) {
    for entry in std::fs::read_dir(folder).expect("a readable folder") {
        let path = entry.expect("a readable folder").path();
        let name = path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        if path.is_dir() {
            if !path.is_symlink()
                && !name.starts_with('.')
                && !["target", "shared", "node_modules"].contains(&name.as_str())
            {
                collect(root, &path, files);
            }
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let relative = path.strip_prefix(root).expect("below the root");
            let relative = relative.to_string_lossy().replace('\\', "/");
            files.insert(relative, SourceFile::read(&path));
        }
    }
}
