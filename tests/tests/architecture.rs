//! Holds the crates to ARCHITECTURE.md: what each must never know, from `cargo metadata`.

#![allow(clippy::unwrap_used, missing_docs)]

use std::collections::{HashMap, HashSet};
use std::process::Command;

use serde_json::Value;

/// All packages that a crate's normal dependencies reach, on any platform.
fn reach(metadata: &Value, crate_name: &str) -> HashSet<String> {
    let packages = metadata["packages"].as_array().unwrap();
    let name_of: HashMap<&str, &str> = packages
        .iter()
        .map(|p| (p["id"].as_str().unwrap(), p["name"].as_str().unwrap()))
        .collect();
    let nodes: HashMap<&str, &Value> = metadata["resolve"]["nodes"]
        .as_array()
        .unwrap()
        .iter()
        .map(|node| (node["id"].as_str().unwrap(), node))
        .collect();
    let start = packages
        .iter()
        .find(|p| p["name"] == crate_name)
        .unwrap_or_else(|| panic!("no crate {crate_name}"));
    let mut open = vec![start["id"].as_str().unwrap()];
    let mut seen = HashSet::new();
    while let Some(id) = open.pop() {
        for dependency in nodes[id]["deps"].as_array().unwrap() {
            let normal = dependency["dep_kinds"]
                .as_array()
                .unwrap()
                .iter()
                .any(|kind| kind["kind"].is_null());
            let id = dependency["pkg"].as_str().unwrap();
            if normal && seen.insert(name_of[id].to_owned()) {
                open.push(id);
            }
        }
    }
    seen
}

fn metadata() -> Value {
    let output = Command::new(env!("CARGO"))
        .args([
            "metadata",
            "--format-version",
            "1",
            "--locked",
            "--offline",
            "--all-features",
        ])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn no_crate_knows_what_it_must_never_know() {
    let metadata = metadata();
    let never: [(&str, &[&str]); 6] = [
        (
            "phi-edge-engine",
            &["ort", "tokio", "rumqttc-v5-next", "mqtt5", "serde_json"],
        ),
        ("phi-edge-models", &["ort", "tokio", "rumqttc-v5-next", "mqtt5"]),
        ("phi-edge-onnx", &["tokio", "rumqttc-v5-next", "mqtt5"]),
        ("phi-edge-service", &["ort", "rumqttc-v5-next", "mqtt5"]),
        ("phi-edge-mqtt", &["ort"]),
        (
            "phi-edge-config",
            &[
                "ort",
                "tokio",
                "rumqttc-v5-next",
                "phi-edge-engine",
                "phi-edge-models",
            ],
        ),
    ];
    for (name, forbidden) in never {
        let reached = reach(&metadata, name);
        for one in forbidden {
            assert!(!reached.contains(*one), "{name} must never know {one}");
        }
    }
}

#[test]
fn one_crate_each_names_ort_and_rumqttc() {
    let metadata = metadata();
    let members: HashSet<&str> = metadata["workspace_members"]
        .as_array()
        .unwrap()
        .iter()
        .map(|id| id.as_str().unwrap())
        .collect();
    for (library, owner) in [
        ("ort", "phi-edge-onnx"),
        ("rumqttc-v5-next", "phi-edge-mqtt"),
        ("mqtt5", "phi-edge-mqtt"),
    ] {
        let users: Vec<&str> = metadata["packages"]
            .as_array()
            .unwrap()
            .iter()
            .filter(|package| members.contains(package["id"].as_str().unwrap()))
            .filter(|package| {
                package["dependencies"]
                    .as_array()
                    .unwrap()
                    .iter()
                    .any(|d| d["name"] == library)
            })
            .map(|package| package["name"].as_str().unwrap())
            .collect();
        assert_eq!(users, [owner], "{library}");
    }
}
