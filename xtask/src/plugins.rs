//! Fetches the plugin providers that tests load: wheels of PyPI, by pip, with their hashes.

use std::path::PathBuf;

use anyhow::{Result, bail};

use crate::library::Platform;
use crate::process::target;
use crate::wheels;

/// The plugins: the variable that names each to the tests, and its library within the wheels.
const PLUGINS: [(&str, &str); 2] = [
    (
        "PHI_EDGE_TEST_WEBGPU_PLUGIN",
        "onnxruntime_ep_webgpu/libonnxruntime_providers_webgpu.so",
    ),
    (
        "PHI_EDGE_TEST_GGML_PLUGIN",
        "onnxruntime_ggml/lib/libonnxruntime_ggml.so",
    ),
];

/// The variables that name the plugins to the tests, fetched if they are not there yet; none where there is no plugin for this
/// machine.
pub(crate) fn for_tests() -> Result<Vec<(&'static str, PathBuf)>> {
    if Platform::of_this_machine()? != Platform::LinuxX64 {
        return Ok(Vec::new());
    }
    let wanted = include_str!("../plugins.txt");
    let folder = target().join("onnxruntime-plugins");
    let stamp = folder.join("installed.txt");
    if std::fs::read_to_string(&stamp).ok().as_deref() != Some(wanted) {
        eprintln!("Fetching plugin providers for the tests …");
        // Their libraries are of no Python version.
        let tags = [
            "--python-version",
            "3.12",
            "--platform",
            "manylinux_2_35_x86_64",
            "--platform",
            "manylinux_2_28_x86_64",
        ];
        wheels::fetch("plugins.txt", &tags, &folder)?;
        std::fs::write(&stamp, wanted)?;
    }
    let mut variables = Vec::new();
    for (variable, library) in PLUGINS {
        let library = folder.join(library);
        if !library.is_file() {
            bail!("the plugins' wheels hold no {}", library.display());
        }
        variables.push((variable, library));
    }
    Ok(variables)
}
