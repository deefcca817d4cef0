//! What the package is made of, as CycloneDX 1.5 has it.

use std::collections::{HashMap, HashSet};
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::Plan;
use crate::library;
use crate::process::{cargo, root};

/// The document: every crate that is linked into the program, ONNX Runtime, and the demonstration model.
pub(crate) fn cyclonedx(plan: &Plan) -> Result<Vec<u8>> {
    let metadata = metadata(plan)?;
    let checksums = checksums()?;
    let packages = metadata["packages"]
        .as_array()
        .context("cargo metadata names no packages")?;
    let linked = linked(&metadata)?;
    let mut components: Vec<Value> = packages
        .iter()
        .filter(|package| {
            package["name"] != "phi-edge" && package["id"].as_str().is_some_and(|id| linked.contains(id))
        })
        .map(|package| component(package, &checksums))
        .collect();
    components.sort_by_key(|component| component["bom-ref"].as_str().map(str::to_owned));
    components.push(onnxruntime(plan)?);
    components.push(json!({
        "type": "machine-learning-model",
        "bom-ref": "phi-edge-demo-model",
        "name": "phi-edge-demo-model",
        "version": plan.version,
        "licenses": [{"expression": "MIT OR Apache-2.0"}],
    }));
    let document = json!({
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {
            "component": {
                "type": "application",
                "bom-ref": "phi-edge",
                "name": "phi-edge",
                "version": plan.version,
                "licenses": [{"expression": "MIT OR Apache-2.0"}],
            },
        },
        "components": components,
    });
    let mut text = serde_json::to_vec_pretty(&document)?;
    text.push(b'\n');
    Ok(text)
}

fn metadata(plan: &Plan) -> Result<Value> {
    let triple = plan.platform.triple();
    let output = cargo()
        .args([
            "metadata",
            "--format-version",
            "1",
            "--locked",
            "--filter-platform",
            triple,
        ])
        .stderr(std::process::Stdio::inherit())
        .output()?;
    if !output.status.success() {
        bail!("cargo metadata failed: {}", output.status);
    }
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// The ids of all packages that normal dependencies of the program reach.
fn linked(metadata: &Value) -> Result<HashSet<String>> {
    let nodes: HashMap<&str, &Value> = metadata["resolve"]["nodes"]
        .as_array()
        .context("cargo metadata resolves nothing")?
        .iter()
        .filter_map(|node| Some((node["id"].as_str()?, node)))
        .collect();
    let start = metadata["packages"]
        .as_array()
        .into_iter()
        .flatten()
        .find(|package| package["name"] == "phi-edge")
        .and_then(|package| package["id"].as_str())
        .context("cargo metadata does not know phi-edge")?;
    let mut open = vec![start];
    let mut seen = HashSet::from([start.to_owned()]);
    while let Some(id) = open.pop() {
        let dependencies = nodes
            .get(id)
            .and_then(|node| node["deps"].as_array())
            .into_iter()
            .flatten();
        for dependency in dependencies {
            let normal = dependency["dep_kinds"]
                .as_array()
                .is_some_and(|kinds| kinds.iter().any(|kind| kind["kind"].is_null()));
            if let Some(id) = dependency["pkg"].as_str()
                && normal
                && seen.insert(id.to_owned())
            {
                open.push(id);
            }
        }
    }
    Ok(seen)
}

fn component(package: &Value, checksums: &HashMap<(String, String), String>) -> Value {
    let text = |key: &str| package[key].as_str().unwrap_or_default().to_owned();
    let (name, version) = (text("name"), text("version"));
    let purl = format!("pkg:cargo/{name}@{version}");
    // Some old crates part licences by a slash, which is no SPDX expression.
    let licence = text("license").replace('/', " OR ");
    let mut component = json!({
        "type": "library",
        "bom-ref": purl,
        "name": name,
        "version": version,
        "purl": purl,
        "licenses": [{"expression": licence}],
    });
    if let Some(checksum) = checksums.get(&(name, version)) {
        component["hashes"] = json!([{"alg": "SHA-256", "content": checksum}]);
    }
    component
}

/// The checksums of Cargo.lock by name and version.
fn checksums() -> Result<HashMap<(String, String), String>> {
    let text = std::fs::read_to_string(root().join("Cargo.lock"))?;
    let mut checksums = HashMap::new();
    for package in text.split("[[package]]").skip(1) {
        let value = |key: &str| {
            package.lines().find_map(|line| {
                line.strip_prefix(key)?
                    .strip_prefix(" = \"")?
                    .strip_suffix('"')
                    .map(str::to_owned)
            })
        };
        if let (Some(name), Some(version), Some(checksum)) =
            (value("name"), value("version"), value("checksum"))
        {
            checksums.insert((name, version), checksum);
        }
    }
    Ok(checksums)
}

fn onnxruntime(plan: &Plan) -> Result<Value> {
    let library = library::fetch(plan.platform)?;
    let output = Command::new("sha256sum")
        .arg(&library)
        .output()
        .context("sha256sum can't be started")?;
    let sum = String::from_utf8_lossy(&output.stdout);
    let purl = format!("pkg:pypi/onnxruntime@{}", library::VERSION);
    Ok(json!({
        "type": "library",
        "bom-ref": purl,
        "name": "onnxruntime",
        "version": library::VERSION,
        "purl": purl,
        "licenses": [{"expression": "MIT"}],
        "hashes": [{"alg": "SHA-256", "content": sum.split_whitespace().next().unwrap_or_default()}],
    }))
}
