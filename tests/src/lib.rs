//! Support of the end-to-end tests: where the fixtures, the library and the brokers are.

#![allow(clippy::missing_panics_doc)]

mod broker;
mod chance;
mod counted;
mod daemon;
mod field;
pub mod hostile;
pub mod hub;
mod load;
mod path;
mod prometheus;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode};
use std::sync::atomic::{AtomicU32, Ordering};

pub use broker::{Mosquitto, free_port};
pub use chance::{Chance, random_seed};
pub use counted::{Counted, CountedEvents};
pub use daemon::{BASE, Daemon, NODE, TIMEOUT, client, json, next, state};
pub use field::{Field, Tally, question};
pub use load::{Load, devices};
pub use path::{Lives, Path as BrokerPath};
pub use prometheus::{Prometheus, http};
use tempfile::TempDir;

/// The exit status of a test program. An error is printed as its whole chain in one line; a backtrace does not help there.
#[allow(clippy::print_stderr, reason = "what a program says when it fails")]
pub fn exit_code(outcome: anyhow::Result<()>) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// True on CI, where nothing may be skipped.
pub fn on_ci() -> bool {
    std::env::var_os("CI").is_some_and(|value| value == "true")
}

/// Says that a test skips; on CI it fails instead.
pub fn skip(what: &str) {
    assert!(!on_ci(), "{what}");
    println!("SKIPPED: {what}");
}

/// A folder of the model fixtures, `None` (and said so) where they are absent.
pub fn fixture(name: &str) -> Option<PathBuf> {
    let root = std::env::var_os("PHI_EDGE_FIXTURES").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/fixtures"),
        PathBuf::from,
    );
    let folder = root.join(name);
    if folder.is_dir() {
        return Some(folder);
    }
    skip(&format!("the fixture {} is absent", folder.display()));
    None
}

/// True if `cargo xtask test` named an ONNX Runtime library; says so where not.
pub fn has_library() -> bool {
    let named = std::env::var_os("ORT_DYLIB_PATH").is_some();
    if !named {
        skip("no ONNX Runtime library: run cargo xtask test");
    }
    named
}

/// The daemon's binary, which `cargo test --workspace` builds beside the tests.
pub fn phi_edge() -> PathBuf {
    // Tests lie in target/PROFILE/deps, programs of this crate beside the daemon.
    let test = std::env::current_exe().expect("a test has a path");
    let name = format!("phi-edge{}", std::env::consts::EXE_SUFFIX);
    let beside = test.with_file_name(&name);
    if beside.exists() {
        return beside;
    }
    let folder = test
        .parent()
        .and_then(Path::parent)
        .expect("tests lie in target/PROFILE/deps");
    let binary = folder.join(name);
    assert!(
        binary.exists(),
        "{} is not built: run cargo test --workspace",
        binary.display()
    );
    binary
}

/// The model that the repository brings along.
pub fn demo_model() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/demo")
}

/// A small vision model in a folder of its own, with the demonstration model's tokenizer.
///
/// # Panics
/// The folder can't be written.
#[expect(clippy::unwrap_used, reason = "a test's own files")]
pub fn vision_model() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let graphs = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/vision/cpu");
    let graphs = std::fs::read_dir(graphs).unwrap();
    let tokenizer = ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja"];
    let tokenizer = tokenizer.map(|name| demo_model().join(name));
    for file in graphs.map(|entry| entry.unwrap().path()).chain(tokenizer) {
        std::fs::copy(&file, folder.path().join(file.file_name().unwrap())).unwrap();
    }
    folder
}

/// A number that no other caller in this process gets.
pub fn unique() -> u32 {
    static COUNTER: AtomicU32 = AtomicU32::new(0);
    COUNTER.fetch_add(1, Ordering::Relaxed)
}

/// The middle of some values, of two the greater one; the default where there is none.
pub fn median<T: Copy + Ord + Default>(values: impl IntoIterator<Item = T>) -> T {
    let mut values: Vec<T> = values.into_iter().collect();
    values.sort_unstable();
    values.get(values.len() / 2).copied().unwrap_or_default()
}

/// Sends a signal by name (`TERM`, `INT`, `KILL`, `STOP`, …).
pub fn signal(process: &Child, name: &str) {
    let status = Command::new("kill")
        .args(["-s", name, &process.id().to_string()])
        .status()
        .expect("kill runs");
    assert!(status.success(), "kill -s {name}");
}
