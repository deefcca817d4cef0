//! DirectML, as far as wine goes: its Direct3D 12 runs over Vulkan, on Mesa's software driver. The library with DirectML loads and
//! computes on the processor; its provider gets as far as a call that wine does not implement.

use anyhow::{Result, ensure};

use crate::wine::{Wine, output, said, staged};

/// The folder of the library with DirectML, beside the program.
const LIBRARY: &str = "directml/onnxruntime.dll";
/// The exit status for a provider that is not available.
const UNAVAILABLE: i32 = 69;

pub(crate) fn run(wine: &Wine) -> Result<()> {
    let model = staged("models/demo");
    let answer = output(
        wine.phi_edge(&["ask", "--provider", "cpu", "--model", &model, "Who are you?"])
            .env("ORT_DYLIB_PATH", staged(LIBRARY)),
    )?;
    ensure!(
        answer.status.success() && said(&answer).contains("demonstration model"),
        "{}",
        said(&answer)
    );
    println!("ok   DirectML's library: it answers on the processor");

    let (code, report) = check(wine, &["runtime.provider=auto"])?;
    ensure!(
        code == Some(0) && report.contains("ok     provider  cpu"),
        "{report}"
    );
    ensure!(report.contains("directml can't be used here"), "{report}");
    println!("ok   auto: it says why not DirectML, and takes the processor");

    // Without a number ONNX Runtime asks DXCore, which wine lacks. The first device gets as far as EnumerateMetaCommands.
    for (settings, parts) in [
        (&[][..], ["DXCore", "runtime.device_id"]),
        (&["runtime.device_id=0"], ["dml_provider_factory", "80004001"]),
        (&["runtime.device_id=7"], ["887A0002", "Check runtime.device_id"]),
    ] {
        let mut all = vec!["runtime.provider=directml"];
        all.extend(settings);
        let (code, report) = check(wine, &all)?;
        ensure!(
            code == Some(UNAVAILABLE) && parts.iter().all(|part| report.contains(part)),
            "{all:?}: {code:?}, {parts:?} in: {report}"
        );
    }
    println!("ok   directml: the first device's registration ends at what wine does not implement");
    Ok(())
}

/// Runs `check` with DirectML's library: the exit status, and what it wrote.
fn check(wine: &Wine, settings: &[&str]) -> Result<(Option<i32>, String)> {
    let mut all = vec![
        format!("model.path={}", staged("models/demo")),
        format!("runtime.library={}", staged(LIBRARY)),
    ];
    all.extend(settings.iter().map(|setting| (*setting).to_owned()));
    let mut arguments = vec!["check", "--offline"];
    for setting in &all {
        arguments.extend(["--set", setting]);
    }
    let output = output(&mut wine.phi_edge(&arguments))?;
    Ok((output.status.code(), said(&output)))
}
