//! `phi-edge bench --report` as a user runs it.

#![allow(clippy::unwrap_used, missing_docs)]

use std::path::Path;
use std::process::{Command, Output};

use phi_edge_tests::{demo_model, has_library, phi_edge};
use serde_json::Value;

fn bench(file: &Path) -> Output {
    Command::new(phi_edge())
        .args(["bench", "--model"])
        .arg(demo_model())
        .arg("--report")
        .arg(file)
        .env("XDG_CACHE_HOME", env!("CARGO_TARGET_TMPDIR"))
        .output()
        .unwrap()
}

#[test]
fn a_report_has_the_machine_and_all_scenarios() {
    if !has_library() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("report.json");
    let output = bench(&file);
    let complaint = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{complaint}");
    let report: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    let is_positive = |value: &Value| value.as_f64().is_some_and(|number| number > 0.0);
    for figure in [
        "/memory/read_bytes_per_s",
        "/model/weights_bytes_per_token",
        "/model/multiply_adds_per_token",
        "/loaded/threads",
        "/expected/decode_tokens_per_s",
        "/scenarios/one_stream/prefill_tokens_per_s",
        "/scenarios/four_streams/decode_tokens_per_s",
        "/scenarios/burst/total_s",
        "/scenarios/arrivals/total_s",
        "/scenarios/cached/cached_first_token_ms",
    ] {
        let value = report.pointer(figure).unwrap_or(&Value::Null);
        assert!(is_positive(value), "{figure}: {value}");
    }
    // Where there are kernels and a probe of their instructions, prefill has a bound.
    let has_probe = cfg!(target_arch = "x86_64") && report["loaded"]["isa"] != "none";
    let bound = &report["expected"]["prefill_tokens_per_s"];
    assert_eq!(is_positive(bound), has_probe, "{report}");
    // The demonstration model's context is too short for these.
    for scenario in ["gaps", "summary"] {
        let reason = report["scenarios"][scenario]["left_out"].as_str();
        assert!(
            reason.is_some_and(|reason| reason.contains("context")),
            "{scenario}"
        );
    }
    let printed = String::from_utf8(output.stdout).unwrap();
    assert_eq!(printed.lines().last(), report["row"].as_str());
}

#[test]
fn a_file_that_can_not_be_written_is_named_before_anything_is_measured() {
    if !has_library() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("missing/report.json");
    let output = bench(&file);
    let complaint = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success());
    assert!(complaint.contains("report.json can't be written"), "{complaint}");
    assert!(!complaint.contains("loading"), "{complaint}");
}
