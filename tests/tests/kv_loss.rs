//! `phi-edge bench --kv-loss` as a user runs it.

#![allow(clippy::unwrap_used, missing_docs)]

use std::path::Path;
use std::process::{Command, Output};

use phi_edge_tests::{has_library, phi_edge, skip};
use serde_json::Value;

/// The bounds of the loss on answers to held-out prompts.
const MIN_ANSWERS_TOP1: f64 = 0.995;
const MAX_ANSWERS_KL: f64 = 0.002;
/// The bounds on the multilingual text, of which the demonstration model knows nothing: its matmuls with 8-bit inputs alone
/// turn any rounding error into a top-1 agreement of 99.5 % (docs/benchmarks.md).
const MIN_TEXT_DECIDED_TOP1: f64 = 0.985;
const MAX_TEXT_KL: f64 = 0.004;

fn kv_loss(flags: &[&str]) -> Output {
    Command::new(phi_edge())
        .args(["bench", "--kv-loss", "--model"])
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/demo"))
        .args(flags)
        .env("XDG_CACHE_HOME", env!("CARGO_TARGET_TMPDIR"))
        .output()
        .unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Whether this processor has kernels for keys and values of 8 bits.
fn has_kernels() -> bool {
    #[cfg(target_arch = "x86_64")]
    return std::arch::is_x86_feature_detected!("avx2")
        && std::arch::is_x86_feature_detected!("fma")
        && std::arch::is_x86_feature_detected!("f16c");
    #[cfg(not(target_arch = "x86_64"))]
    return false;
}

#[test]
fn the_demonstration_model_loses_little() {
    if !has_library() {
        return;
    }
    if !has_kernels() {
        let refused = kv_loss(&["--json"]);
        assert!(
            !refused.status.success() && stderr(&refused).contains("i8"),
            "{}",
            stderr(&refused)
        );
        skip("this processor has no kernels for 8-bit keys and values");
        return;
    }
    // Runs of prefill, over the LongRoPE boundary of 1,024 and below it; and runs of decode.
    for flags in [
        &["--prompt-tokens", "2000"][..],
        &["--prompt-tokens", "1000"],
        &["--prefill-chunk", "1"],
    ] {
        let output = kv_loss(&[flags, &["--json"]].concat());
        assert!(output.status.success(), "{}", stderr(&output));
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        let figure = |name: &str| report[name].as_f64().unwrap();
        let answers = |name: &str| report["answers"][name].as_f64().unwrap();
        assert!(
            answers("answers") >= 12.0 && answers("compared") >= 500.0,
            "{report}"
        );
        assert!(answers("top1_agreement") >= MIN_ANSWERS_TOP1, "{report}");
        assert!(answers("kl_mean") <= MAX_ANSWERS_KL, "{report}");
        assert!(figure("compared") >= 2000.0, "{report}");
        assert!(
            figure("decided_top1_agreement") >= MIN_TEXT_DECIDED_TOP1,
            "{report}"
        );
        assert!(figure("kl_mean") <= MAX_TEXT_KL, "{report}");
        // Equal predictions would mean that one type of the cache served both passes.
        assert!(
            figure("kl_mean") > 0.0 && figure("kv_bytes_per_token") < figure("kv_bytes_per_token_f32") / 2.0,
            "{report}"
        );
    }
}

#[test]
fn lengths_beyond_the_context_and_other_measurements_are_refused() {
    if !has_library() {
        return;
    }
    for flags in [
        &["--prompt-tokens", "5000"][..],
        &["--scenario", "burst"],
        &["--turns", "--json"],
    ] {
        let output = kv_loss(flags);
        if flags.contains(&"5000") && !has_kernels() {
            continue;
        }
        assert_eq!(output.status.code(), Some(2), "{flags:?}: {}", stderr(&output));
        assert!(output.stdout.is_empty(), "{flags:?}");
    }
}

#[test]
fn without_an_answer_to_compare_it_is_refused() {
    if !has_library() || !has_kernels() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let empty = folder.path().join("none.jsonl");
    std::fs::write(&empty, "").unwrap();
    for (flags, says) in [
        (
            &["--new-tokens", "2040"][..],
            "--new-tokens 2040 leaves no room for a prompt",
        ),
        (&["--new-tokens", "999999"], "or less"),
        (
            &["--prompts", empty.to_str().unwrap()],
            "write one JSON string a line",
        ),
    ] {
        let output = kv_loss(flags);
        assert_eq!(output.status.code(), Some(2), "{flags:?}: {}", stderr(&output));
        assert!(stderr(&output).contains(says), "{}", stderr(&output));
        assert!(output.stdout.is_empty(), "{flags:?}");
    }
}
