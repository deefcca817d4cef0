//! Nothing leaves the house: not by the library either.

#![allow(clippy::unwrap_used, missing_docs)]

use std::process::Command;

use phi_edge_tests::{demo_model, has_library, phi_edge};

/// ONNX Runtime's own builds queue reports for their maker below the user's cache folder, with an id of the device, before
/// they send them.
#[test]
fn the_library_is_loaded_without_its_reports() {
    if !has_library() {
        return;
    }
    let home = tempfile::tempdir().unwrap();
    let cache = home.path().join("cache");
    let output = Command::new(phi_edge())
        .args(["ask", "--model"])
        .arg(demo_model())
        .arg("Who are you?")
        .env_remove("ORT_DISABLE_TELEMETRY")
        .env("HOME", home.path())
        .env("XDG_CACHE_HOME", &cache)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    assert!(!said.contains("telemetry"), "{said}");
    let left = |folder: &std::path::Path| -> Vec<String> {
        std::fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
            .collect()
    };
    assert_eq!(left(home.path()), ["cache"]);
    assert_eq!(
        left(&cache),
        ["phi-edge"],
        "what is tried of models, and nothing else"
    );
}
